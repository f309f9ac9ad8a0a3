"""The page: one HTML file with all numbers and the script that shows them; it loads nothing from elsewhere."""

import base64
import hashlib
import math
from decimal import ROUND_HALF_UP, Decimal
from importlib import resources
from typing import Any

import numpy as np

from jaxattn.extras import require
from jaxattn.guide.section import Figure, Numbers, Section, setting
from jaxattn.guide.sections import make_sections
from jaxattn.guide.story import Story

CORNER = "query ↓ key →"


def render_page(story: Story) -> str:
    """Render the whole page; the same story gives the same bytes.

    Raises:
        ImportError: jinja2 is not installed.

    Example:
        >>> from jaxattn.guide.page import render_page
        >>> from jaxattn.guide.story import book_story
        >>> "0.9544" in render_page(book_story())  # the score of the book's second token with its first
        True
    """
    jinja2, markup = require("jinja2", extra="guide"), require("markupsafe", extra="guide").Markup
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    style, script = _read("page.css"), _read("page.js")
    sections = make_sections(story)
    return str(
        environment.from_string(_read("page.html.jinja")).render(
            story=story,
            sections=[_with_tables(section) for section in sections],
            data={"tokens": story.tokens, "query": story.query, "sections": [_data(s) for s in sections]},
            style=markup(style),
            script=markup(script),
            style_hash=_hash(style),
            script_hash=_hash(script),
        )
    )


def format_number(number: float) -> str:
    """Round a number as the page's script does: four places, halves away from 0.

    Example:
        >>> from jaxattn.guide.page import format_number
        >>> format_number(0.95441), format_number(0.03125), format_number(-0.00001), format_number(float("-inf"))
        ('0.9544', '0.0313', '0.0000', '−∞')
    """
    if math.isinf(number):
        return "−∞" if number < 0 else "∞"
    text = str(Decimal(number).quantize(Decimal("0.0001"), ROUND_HALF_UP))
    return text.removeprefix("-") if not text.strip("-0.") else text


def _read(name: str) -> str:
    return (resources.files("jaxattn.guide") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data(section: Section) -> dict[str, Any]:
    """Collect what the script needs."""
    return {
        "id": section.id,
        "switches": [switch._asdict() for switch in section.switches],
        "numbers": {name: _encode(numbers) for name, numbers in section.numbers.items()},
        "arcs": section.arcs,
        "steps": [step._asdict() for step in section.steps],
        "figures": [figure._asdict() for figure in section.figures],
        "labels": section.labels,
    }


def _encode(numbers: Numbers) -> dict[str, Any]:
    """Encode arrays as little-endian float32 in base64."""
    encoded = {
        where: base64.b64encode(np.asarray(array, "<f4").tobytes()).decode() for where, array in numbers.values.items()
    }
    shapes = {where: array.shape for where, array in numbers.values.items()}
    return {"axes": numbers.axes, "switches": numbers.switches, "shapes": shapes, "values": encoded}


def _with_tables(section: Section) -> dict[str, Any]:
    """Add the tables that stand without JavaScript, for the initial setting of the switches."""
    initial = {switch.name: switch.initial for switch in section.switches}
    return {**section._asdict(), "tables": [_tables(figure, section, initial) for figure in section.figures]}


def _tables(figure: Figure, section: Section, initial: dict[str, str]) -> list[dict[str, Any]]:
    """Lay out a figure's table, or one for each entry of its first axis."""
    numbers = section.numbers[figure.array]
    array = numbers.values[setting(**{name: initial[name] for name in numbers.switches})]
    *outer, rows, columns = [_labels(section, axis, size) for axis, size in zip(numbers.axes, array.shape, strict=True)]
    titles = [f"{figure.title}, {label}" for label in outer[0]] if outer else [figure.title]
    corner = CORNER if numbers.axes[-2:] == ("query", "key") else ""
    tables = []
    for title, matrix in zip(titles, array if outer else [array], strict=True):
        cells = [[(format_number(float(x)), str(float(np.float32(x)))) for x in row] for row in matrix]
        body = list(zip(rows, cells, strict=True))
        tables.append({"title": title, "corner": corner, "columns": columns, "rows": body})
    return tables


def _labels(section: Section, axis: str, size: int) -> list[str]:
    labels = section.labels.get(axis, [])
    numbers = [f"head {number}" if axis == "head" else str(number) for number in range(size)]
    return labels if len(labels) == size else numbers
