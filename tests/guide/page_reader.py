"""Reads every number from the page in a browser, in every setting of the switches."""

import html
import itertools
import json
import re

import numpy as np
from page_numbers import Near, assert_same

from jaxattn.guide.page import format_number

# For one setting of the switches: what is shown for every query, at every step.
READ = """
const [root, setting, tokens] = arguments;
const cells = (row) => [...row.querySelectorAll("td")].map((cell) => [cell.dataset.value, cell.textContent]);
const rows = (table) => [...table.tBodies[0].rows].map(cells);
const choose = (name, value) => root.querySelector(`[data-switch='${name}'] input[value='${value}']`).click();
for (const [name, value] of Object.entries(setting)) choose(name, value);
const views = [];
for (let query = 0; query < tokens; query++) {
  choose("query", query);
  const steps = [...root.querySelectorAll(".step ol button")].map((button) => {
    button.click();
    return rows(root.querySelector(".stepper table"));
  });
  const figures = [...root.querySelectorAll(".figure")].map((each) => [...each.querySelectorAll("table")].map(rows));
  const arcs = [...root.querySelectorAll(".arcs text.amount")].map((text) => text.textContent);
  const entries = (picture) => [...picture.querySelectorAll("rect")].map((entry) => entry.dataset.value);
  const heads = [...root.querySelectorAll(".heads button")].map(entries);
  views.push({ steps, figures, arcs, heads });
}
return views;
"""


def page_data(page):
    """The data of the page's script."""
    return json.loads(html.unescape(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]))


def section_data(page, section_id):
    (section,) = (each for each in page_data(page)["sections"] if each["id"] == section_id)
    return section


def check_section(browser, section, expected, tokens):
    """Choose every setting of the switches, every query and every step, and compare whatever is shown."""
    root = browser.find_element("id", section["id"])
    names = [switch["name"] for switch in section["switches"]]
    values = [[value for value, _ in switch["options"]] for switch in section["switches"]]
    for combination in itertools.product(*values):
        setting = dict(zip(names, combination, strict=True))
        numbers = expected(setting)
        for query, view in enumerate(browser.execute_script(READ, root, setting, tokens)):
            check_steps(section, view["steps"], numbers, setting, query)
            check_figures(section, view["figures"], numbers)
            check_weights(section, view, numbers, setting, query)


def check_steps(section, tables, numbers, setting, query):
    for step, rows in zip(section["steps"], tables, strict=True):
        whole = numbers[step["array"]]
        row = as_array(whole)
        row = row[int(setting["head"])] if has_heads(section, step["array"]) else row
        row = row[query] if row.ndim == 3 else row[query][None]
        assert_same(read(rows), Near(row) if isinstance(whole, Near) else row)


def check_figures(section, figures, numbers):
    for figure, tables in zip(section["figures"], figures, strict=True):
        shown = np.stack([read(rows) for rows in tables])
        is_many = len(section["numbers"][figure["array"]]["axes"]) == 3
        assert_same(shown if is_many else shown[0], numbers[figure["array"]])


def check_weights(section, view, numbers, setting, query):
    """The arcs, and the small pictures of all heads."""
    weights = as_array(numbers[section["arcs"]])
    assert bool(view["heads"]) == ("head" in setting)
    if "head" in setting:
        pictures = np.array(view["heads"], np.float64).astype(np.float32)
        lower = np.stack([head[np.tril_indices(weights.shape[-1])] for head in weights])
        assert_same(pictures.reshape(-1, *lower.shape)[int(setting.get("layer", 0))], lower)
        weights = weights[int(setting["head"])]
    np.testing.assert_allclose([float(text) for text in view["arcs"]], weights[query], atol=6e-5)


def has_heads(section, array):
    return section["numbers"][array]["axes"][0] == "head"


def as_array(numbers):
    return np.asarray(numbers.array if isinstance(numbers, Near) else numbers)


def read(rows):
    """A table's numbers; the text of each cell must be its value, rounded."""
    for value, text in itertools.chain(*rows):
        assert text == format_number(float(value))
    return np.array([[float(value) for value, _ in row] for row in rows], np.float64).astype(np.float32)
