"""What a section of the page is made of."""

from typing import Any, NamedTuple

import numpy as np

from jaxattn.guide.story import Story


class Choice(NamedTuple):
    """A switch: its name, its label, pairs of a value and what it is called, and the value that it has at first."""

    name: str
    label: str
    options: list[tuple[str, str]]
    first: str


class Numbers(NamedTuple):
    """One array for each position of the switches in `depends`; `axes` names their axes."""

    axes: tuple[str, ...]
    depends: tuple[str, ...]
    values: dict[str, np.ndarray]


class Figure(NamedTuple):
    """A table of an array, or of three axes a table for each entry of the first.

    `kind` is "weights", "scores", "values", or "plain" without colours; `hidden` an array that says which cells show.
    """

    title: str
    array: str
    kind: str
    hidden: str | None = None


class Step(NamedTuple):
    """What happens to the chosen query's row: the array's row, or of three axes its table."""

    name: str
    text: str
    array: str


class Section(NamedTuple):
    """One section of the page; `labels` names the entries of an axis, where they are more than numbers."""

    id: str
    title: str
    paragraphs: list[str]
    choices: list[Choice]
    numbers: dict[str, Numbers]
    arcs: str
    steps: list[Step]
    figures: list[Figure]
    code: str
    labels: dict[str, list[str]]


def position(**switches: Any) -> str:
    """Name a position of switches."""
    return "&".join(f"{name}={value}" for name, value in switches.items())


def one(array: Any, *axes: str) -> Numbers:
    """Take an array that depends on no switch."""
    return Numbers(axes, (), {"": np.asarray(array)})


def each_of(switch: str, arrays: dict[Any, Any], *axes: str) -> Numbers:
    """Take an array for each position of one switch."""
    return Numbers(axes, (switch,), {position(**{switch: where}): np.asarray(a) for where, a in arrays.items()})


def of_tokens(story: Story) -> dict[str, list[str]]:
    """Name the entries of the axes that are tokens."""
    return dict.fromkeys(("query", "key", "token"), story.tokens)
