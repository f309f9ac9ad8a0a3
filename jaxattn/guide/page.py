"""The page: one HTML file with every number in it, a script that shows them, and nothing from elsewhere."""

import base64
import hashlib
import math
from decimal import ROUND_HALF_UP, Decimal
from importlib import resources
from typing import Any

import numpy as np

from jaxattn.extras import require
from jaxattn.guide.section import Figure, Section, position
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
    jinja2 = require("jinja2", extra="guide")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    style, script = _file("page.css"), _file("page.js")
    sections = make_sections(story)
    return str(
        environment.from_string(_file("page.html.jinja")).render(
            story=story,
            sections=[_with_tables(section) for section in sections],
            data={"tokens": story.tokens, "query": story.query, "sections": [_data(s) for s in sections]},
            style=require("markupsafe", extra="guide").Markup(style),
            script=require("markupsafe", extra="guide").Markup(script),
            style_hash=_hash(style),
            script_hash=_hash(script),
        )
    )


def shown(number: float) -> str:
    """Round a number to what the page shows of it, as its script does: four places, halves away from 0.

    Example:
        >>> from jaxattn.guide.page import shown
        >>> shown(0.95441), shown(0.03125), shown(-0.00001), shown(float("-inf"))
        ('0.9544', '0.0313', '0.0000', '−∞')
    """
    if math.isinf(number):
        return "−∞" if number < 0 else "∞"
    text = str(Decimal(number).quantize(Decimal("0.0001"), ROUND_HALF_UP))
    return text.removeprefix("-") if not text.strip("-0.") else text


def _file(name: str) -> str:
    return (resources.files("jaxattn.guide") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data(section: Section) -> dict[str, Any]:
    numbers = {
        name: {
            "axes": each.axes,
            "depends": each.depends,
            "shapes": {where: array.shape for where, array in each.values.items()},
            "values": {
                where: base64.b64encode(np.asarray(array, "<f4").tobytes()).decode()
                for where, array in each.values.items()
            },
        }
        for name, each in section.numbers.items()
    }
    return {
        "id": section.id,
        "choices": [choice._asdict() for choice in section.choices],
        "numbers": numbers,
        "arcs": section.arcs,
        "steps": [step._asdict() for step in section.steps],
        "figures": [figure._asdict() for figure in section.figures],
        "labels": section.labels,
    }


def _with_tables(section: Section) -> dict[str, Any]:
    """Add the tables that stand there without JavaScript: with the switches as they are at first."""
    first = {choice.name: choice.first for choice in section.choices}
    figures = [(figure, _tables(figure, section, first)) for figure in section.figures]
    return {**section._asdict(), "tables": figures}


def _tables(figure: Figure, section: Section, first: dict[str, str]) -> list[dict[str, Any]]:
    numbers = section.numbers[figure.array]
    array = numbers.values[position(**{name: first[name] for name in numbers.depends})]
    *over, down, across = [_names(section, *axis) for axis in zip(numbers.axes, array.shape, strict=True)]
    tables = []
    for title, matrix in zip(over[0] if over else [""], array if over else [array], strict=True):
        cells = [[(shown(float(x)), str(float(np.float32(x)))) for x in row] for row in matrix]
        title = f"{figure.title}, {title}" if title else figure.title
        corner = CORNER if numbers.axes[-2:] == ("query", "key") else ""
        rows = list(zip(down, cells, strict=True))
        tables.append({"title": title, "corner": corner, "columns": across, "rows": rows})
    return tables


def _names(section: Section, axis: str, size: int) -> list[str]:
    named = section.labels.get(axis, [])
    plain = [f"head {number}" if axis == "head" else str(number) for number in range(size)]
    return named if len(named) == size else plain
