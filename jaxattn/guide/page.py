"""The page: one HTML file with all numbers and the script that shows them; it loads nothing from elsewhere."""

import base64
import hashlib
import math
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from importlib import resources
from typing import Any

import numpy as np

from jaxattn.extras import require
from jaxattn.guide.quiz import Asked, quiz
from jaxattn.guide.section import Numbers, Section, setting
from jaxattn.guide.sections import make_sections
from jaxattn.guide.story import Story

SCRIPTS = ("keys.js", "numbers.js", "rules.js", "page.js", "tables.js", "calculator.js", "quiz.js")


def render_page(story: Story) -> str:
    """Render the whole page; the same story gives the same bytes.

    Raises:
        ImportError: jinja2 is not installed.
    """
    return render_sections(make_sections(story), story, quiz() if story.from_book else ())


def render_sections(sections: Sequence[Section], story: Story | None = None, asked: Sequence[Asked] = ()) -> str:
    """Render sections as one HTML file, with the heading of a story or without any, and questions at the end."""
    jinja2, markup = require("jinja2", extra="guide"), require("markupsafe", extra="guide").Markup
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    style, script = _read("page.css"), "".join(map(_read, SCRIPTS))
    return str(
        environment.from_string(_read("page.html.jinja")).render(
            story=story,
            sections=[{**section._asdict(), "matrices": _matrices(section)} for section in sections],
            quiz=asked,
            data={"sections": [_data(section) for section in sections]},
            style=markup(style),
            script=markup(script),
            style_hash=_hash(style),
            script_hash=_hash(script),
        )
    )


def format_number(number: float) -> str:
    """Write a number as the page's script does: four places, halves away from 0, or one digit where that would be 0.

    Example:
        >>> from jaxattn.guide.page import format_number
        >>> format_number(0.95441), format_number(0.03125), format_number(-0.000012), format_number(float("-inf"))
        ('0.9544', '0.0313', '-1e-5', '−∞')
    """
    if math.isnan(number):
        return ""
    if math.isinf(number):
        return "−∞" if number < 0 else "∞"
    if number == int(number) and abs(number) < 1e6:
        return str(int(number))
    if abs(number) < 0.00005:
        digit, exponent = f"{number:.0e}".split("e")
        return f"{digit}e{int(exponent)}"
    return str(Decimal(number).quantize(Decimal("0.0001"), ROUND_HALF_UP))


def _read(name: str) -> str:
    return (resources.files("jaxattn.guide") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data(section: Section) -> dict[str, Any]:
    """Collect what the script needs."""
    names = ("id", "tokens", "query", "arcs", "labels", "opened")
    return {name: getattr(section, name) for name in names} | {
        "switches": [switch._asdict() for switch in section.switches],
        "numbers": {name: _encode(numbers) for name, numbers in section.numbers.items()},
        "equations": [equation._asdict() for equation in section.equations],
    }


def _encode(numbers: Numbers) -> dict[str, Any]:
    """Encode arrays as little-endian float32 in base64."""
    encoded = {
        where: base64.b64encode(np.asarray(array, "<f4").tobytes()).decode() for where, array in numbers.values.items()
    }
    shapes = {where: array.shape for where, array in numbers.values.items()}
    return numbers._asdict() | {"shapes": shapes, "values": encoded}


def _matrices(section: Section) -> list[dict[str, Any]]:
    """Lay out the tables that stand without JavaScript, for the initial setting of the switches."""
    initial = {switch.name: switch.initial for switch in section.switches}
    names: dict[str, str] = {}
    for equation in section.equations:
        if all(initial[name] in values for name, values in equation.when.items()):
            names |= {name: name.capitalize() for name in equation.operands if name not in names}
            names[equation.result] = equation.name
    return [table for name, title in names.items() for table in _tables(section, name, title, initial)]


def _tables(section: Section, name: str, title: str, initial: dict[str, str]) -> list[dict[str, Any]]:
    """Lay out an array's table, or one for each head."""
    numbers = section.numbers[name]
    array = np.asarray(numbers.values[setting(**{name: initial[name] for name in numbers.switches})], np.float32)
    rows, columns = [
        _labels(section, axis, size) for axis, size in zip(numbers.axes[-2:], array.shape[-2:], strict=True)
    ]
    heads = array if array.ndim == 3 else array[None]
    titles = [f"{title}, head {head}" for head in range(len(heads))] if array.ndim == 3 else [title]
    return [
        {
            "title": head_title,
            "columns": columns,
            "rows": list(zip(rows, [[format_number(float(x)) for x in row] for row in head], strict=True)),
        }
        for head_title, head in zip(titles, heads, strict=True)
    ]


def _labels(section: Section, axis: str, size: int) -> list[str]:
    labels = section.tokens if axis in ("query", "key", "token") else section.labels.get(axis, [])
    return labels if len(labels) == size else [str(number) for number in range(size)]
