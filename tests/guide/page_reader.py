"""Reads every number from the page in a browser, with its arithmetic, in every setting of the switches."""

import base64
import html
import itertools
import json
import math
import re

import numpy as np
from page_numbers import Near, assert_same

from jaxattn.guide.page import format_number

# For one setting of the switches: every number of every step, and what its click says.
READ = """
const [root, setting] = arguments;
const choose = (name, value) => root.querySelector(`[data-switch='${name}'] input[value='${value}']`).click();
for (const [name, value] of Object.entries(setting)) choose(name, value);
const read = [];
for (const step of root.querySelectorAll(".strip button")) {
  step.click();
  for (const cell of root.querySelectorAll(".equation.open td[data-place]")) {
    cell.click();
    const line = root.querySelector(".panel .arithmetic").textContent;
    read.push([cell.dataset.place, cell.dataset.value, cell.textContent, line]);
  }
}
return read;
"""


def page_data(page):
    """The data of the page's script."""
    return json.loads(html.unescape(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]))


def section_data(page, section_id):
    (section,) = (each for each in page_data(page)["sections"] if each["id"] == section_id)
    return section


def settings(section):
    names = [switch["name"] for switch in section["switches"]]
    values = [[value for value, _ in switch["options"]] for switch in section["switches"]]
    return [dict(zip(names, combination, strict=True)) for combination in itertools.product(*values)]


# Every number of the tables, and what its click says.
READ_TABLES = """
return [...document.querySelectorAll(".tables td")].map((cell) => {
  cell.click();
  const panel = cell.closest("section").querySelector(".of-tables .panel");
  const read = (name) => panel.querySelector("." + name).textContent;
  return [cell.textContent, read("which"), read("arithmetic"), read("why")];
});
"""


def check_tables(browser):
    """Click every cell of the tables, and evaluate its arithmetic; return the texts of those that are given."""
    given = []
    for text, which, arithmetic, why in browser.execute_script(READ_TABLES):
        assert which
        assert why
        if " = " in arithmetic:
            side, result = arithmetic.split(" = ")
            assert text.split()[-1] == result
            number = result.replace(",", "")
            check_arithmetic(f"{side} = {number}", float(number))
        else:
            given.append(text)
    return given


def check_section(browser, section, expected=None, chosen=None):
    """Choose every setting of the switches, every step and every number; compare it, and evaluate its arithmetic."""
    root = browser.find_element("id", section["id"])
    for setting in chosen or settings(section):
        numbers, shown = expected(setting) if expected else {}, {}
        for place, value, text, arithmetic in browser.execute_script(READ, root, setting):
            name, index = place.split("|")
            number = float(value.replace("Infinity", "inf"))
            assert text == format_number(number), place
            check_arithmetic(arithmetic, number)
            shown.setdefault(name, {})[tuple(map(int, index.split(",")))] = number
        for name, entries in shown.items():
            if name in numbers:
                check_array(numbers[name], entries)
        assert shown
        assert expected is None or {"weights", "context"} <= shown.keys() & numbers.keys()


def check_array(expected, entries):
    """The entries of an array that were shown: all of them, or those of one head."""
    array = np.asarray(expected.array if isinstance(expected, Near) else expected)
    array = array.astype(np.float32)
    assert len(entries) == array[0].size if array.ndim == 3 else array.size
    places = tuple(np.array(list(entries)).T)
    actual, wanted = np.array(list(entries.values()), np.float32), array[places]
    assert_same(actual, Near(wanted) if isinstance(expected, Near) else wanted)


def check_arithmetic(line, number):
    """What stands on each side of "=" is the number, to the digits that are shown."""
    *sides, result = line.split(" = ")
    if math.isnan(number):
        return
    shown = evaluate(result)
    if math.isinf(number):
        assert shown == number
        return
    digits = Decimals(result)
    assert abs(shown - number) <= digits.half, line
    for side in sides:
        assert abs(evaluate(side) - shown) <= digits.half * (1 + 1e-6) + 1e-12, line


class Decimals:
    """Half of the last place of a written number; integers are exact to four places."""

    def __init__(self, text):
        mantissa, _, exponent = text.partition("e")
        places = len(mantissa.partition(".")[2])
        self.half = 0.5 * 10.0 ** (int(exponent or 0) - places) if "." in text or exponent else 0.5e-4


def evaluate(text):
    """Evaluate a side as a reader would."""
    if text == "−∞":
        return -math.inf
    expression = re.sub(r"√([\d.e-]+)", r"sqrt(\1)", text).replace("·", "*").replace("−", "-")
    assert re.fullmatch(r"[\d.e+\-*/() ]+", re.sub(r"exp|sqrt|tanh|sin|cos", "", expression)), text
    names = {name: getattr(math, name) for name in ("exp", "sqrt", "tanh", "sin", "cos")}
    return float(eval(expression, {"__builtins__": {}}, names))


def decode(section, name, where=""):
    """An array of the page's data."""
    numbers = section["numbers"][name]
    flat = np.frombuffer(base64.b64decode(numbers["values"][where]), "<f4")
    return flat.reshape(numbers["shapes"][where])
