"""What a section of the page consists of."""

from typing import Any, NamedTuple

import numpy as np

from jaxattn.guide.story import Story


class Switch(NamedTuple):
    """A choice that the reader makes.

    Args:
        name: what the script calls it.
        label: what the page shows.
        options: pairs of a value and its label.
        initial: the value at first.
    """

    name: str
    label: str
    options: list[tuple[str, str]]
    initial: str


class Numbers(NamedTuple):
    """One array for each setting of some switches.

    Args:
        axes: names of the arrays' axes.
        switches: names of the switches.
        values: the arrays, by `setting(...)` of the switches.
    """

    axes: tuple[str, ...]
    switches: tuple[str, ...]
    values: dict[str, np.ndarray]


class Figure(NamedTuple):
    """A table of an array with two axes, or of an array with three axes a table for each entry of the first.

    Args:
        title: stands above.
        array: the array's name.
        kind: how entries are coloured: "weights", "scores" or "values", or "plain" for no colours.
        mask: name of a mask; masked entries are hatched.
    """

    title: str
    array: str
    kind: str
    mask: str | None = None


class Step(NamedTuple):
    """One step of the computation for the chosen query: its row of the array, or its table where there are three axes.

    Args:
        name: the button's label.
        text: what happens in the step.
        array: name of the result.
    """

    name: str
    text: str
    array: str


class Section(NamedTuple):
    """One section of the page.

    Args:
        id: its anchor.
        title: its heading.
        paragraphs: the explanation.
        switches: the reader's choices.
        numbers: arrays by name, for each setting of the switches.
        arcs: name of the weights that the arcs show.
        steps: the computation, step by step.
        figures: the tables.
        code: the lines of Flax that compute the section.
        labels: names of the entries of an axis, where they are more than numbers.
    """

    id: str
    title: str
    paragraphs: list[str]
    switches: list[Switch]
    numbers: dict[str, Numbers]
    arcs: str
    steps: list[Step]
    figures: list[Figure]
    code: str
    labels: dict[str, list[str]]


def setting(**switches: Any) -> str:
    """Name a setting of switches.

    Example:
        >>> from jaxattn.guide.section import setting
        >>> setting(rate=0.1, key=0)
        'rate=0.1&key=0'
    """
    return "&".join(f"{name}={value}" for name, value in switches.items())


def constant(array: Any, *axes: str) -> Numbers:
    """Wrap an array that depends on no switch."""
    return Numbers(axes, (), {"": np.asarray(array)})


def by_switch(switch: str, arrays: dict[Any, Any], *axes: str) -> Numbers:
    """Wrap one array for each value of one switch."""
    return Numbers(axes, (switch,), {setting(**{switch: value}): np.asarray(a) for value, a in arrays.items()})


def token_labels(story: Story) -> dict[str, list[str]]:
    """Label the axes whose entries are tokens."""
    return dict.fromkeys(("query", "key", "token"), story.tokens)
