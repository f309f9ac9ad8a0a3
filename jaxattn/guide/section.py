"""What a section of the page consists of: named arrays, and the equations that lead from one to the next.

A section is a function of a story in `sections/` that returns a `Section`. It computes all its arrays by the library,
and states for each result by which rule it follows from which operands:

    numbers = {
        "inputs": constant(x, "token", "feature", symbol="X", note="the vectors that the book gives to its words"),
        "W query": constant(kernel, "input", "feature", symbol="W_q", note="trained, or here: given by the book"),
        "queries": constant(steps["queries"], "token", "feature", symbol="Q"),
    }
    Equation("Queries", "Each token's vector times W_q.", "einsum", ["inputs", "W query"], "queries", "rk,kc->rc")

The page draws the equation as [X] · [W_q] = [Q], and writes out the arithmetic of every entry by the rule, with the
arrays' numbers as operands. An array that no equation results in is given; its `note` says where it comes from. Entries
can be followed from results to operands to what is given. Arrays are matrices, `(rows, columns)`; those with an axis
"head" in front show the head that the switch named "head" chooses.

Rules, each the same in `rules.py`, where the tests evaluate it, and in `rules.js`, which writes it out:

    einsum        products of entries, summed over the letters that the result lacks. `spec` is that of `einsum`:
                  "rk,kc->rc" is A · B, "rk,ck->rc" is A · Bᵀ, and with heads "hrk,hck->hrc". A last term with a plus is
                  added: "rk,kc,+1c->rc" adds a bias `(1, columns)`
    product       entries of equal places multiplied; an operand of shape (1, 1) belongs to every place
    sum           entries of equal places added, likewise
    scale         operands: scores, width `(1, 1)`, and perhaps temperature `(1, 1)`: score / √width / temperature
    mask          operands: scores, mask: −∞ where masked
    softmax       exp(entry) / sum of exp over the row
    zero          operands: weights, mask: 0 where masked
    normalize     entry / sum of the row
    row_sum       the sum of the row, a matrix with one column
    dropout       operands: weights, draws in [0, 1), rate `(1, 1)`: 0 where the draw is below the rate, otherwise
                  weight / (1 - rate); a draw of NaN is not shown, because the entry is masked
    join          heads side by side: `(H, T, D)` -> `(T, H * D)`
    split         the other way: `(T, H * D)` -> `(H, T, D)`
    additive      operands: queries `(T, n)`, keys `(S, n)`, v `(1, n)`: the sum of v · tanh(query + key)
    rotate        operands: vectors `(T, d)`, angles `(T, d / 2)`: pairs (i, i + d / 2) turned by their angle
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Switch(NamedTuple):
    """A choice that the reader makes.

    Args:
        name: what the script calls it; "head" and "layer" also have small pictures of all heads.
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
        axes: names of the arrays' axes. "query", "token" and "key" are labelled by the section's tokens.
        switches: names of the switches.
        values: the arrays, by `setting(...)` of the switches.
        symbol: its letter in equations; what follows an underscore is set lower.
        kind: how entries are coloured: "weights", "scores" or "values", or "plain" for no colours.
        note: where a given array comes from.
    """

    axes: tuple[str, ...]
    switches: tuple[str, ...]
    values: dict[str, np.ndarray]
    symbol: str = ""
    kind: str = "values"
    note: str = ""


class Equation(NamedTuple):
    """One step of the computation.

    Args:
        name: a word or two for the button that opens it.
        text: what the step does, in a sentence or two.
        rule: how an entry of the result follows from the operands; the module's docstring lists all.
        operands: names of arrays.
        result: name of the array.
        spec: the letters of "einsum".
        when: values of switches for which the step is taken; for others the page leaves it out.
    """

    name: str
    text: str
    rule: str
    operands: list[str]
    result: str
    spec: str = ""
    when: Mapping[str, Sequence[str]] = {}


class Cell(NamedTuple):
    """A cell of a `Table`.

    Args:
        text: what is shown; its last word is the number.
        arithmetic: an expression of numbers that gives the number to the digits shown, with ·, −, √ and exp; "" where
            the number is given.
        note: where the numbers come from.
    """

    text: str
    arithmetic: str = ""
    note: str = ""


class Table(NamedTuple):
    """A table that does not change: words and numbers.

    Args:
        title: stands above.
        columns: headers, the first that of the rows.
        rows: for each row its header and its cells.
    """

    title: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


class Section(NamedTuple):
    """One section of the page.

    Args:
        id: its anchor.
        title: its heading.
        tokens: the words whose attention is shown.
        query: the token that is chosen at first.
        paragraphs: the explanation.
        numbers: arrays by name, for each setting of the switches.
        equations: the computation, step by step; a section without any shows its arcs alone.
        code: the lines of Python that compute the section.
        arcs: name of the weights that the arcs show; "" for none.
        switches: the reader's choices.
        labels: names of the entries of other axes, where they are more than numbers.
        tables: further tables.
        closing: paragraphs below the figures.
        opened: number of the equation that is open at first.
        calculator: fields of the calculator of the cache's memory: name, label and initial value.
    """

    id: str
    title: str
    tokens: list[str]
    query: int
    paragraphs: list[str]
    numbers: dict[str, Numbers]
    equations: list[Equation]
    code: str = ""
    arcs: str = ""
    switches: Sequence[Switch] = ()
    labels: Mapping[str, list[str]] = {}
    tables: Sequence[Table] = ()
    closing: Sequence[str] = ()
    opened: int = 0
    calculator: Sequence[tuple[str, str, int]] = ()


def short(number: float) -> str:
    """Write a number with two decimals, or one digit where these would be 0.

    Example:
        >>> from jaxattn.guide.section import short
        >>> short(0.994), short(0.0012), short(0.0)
        ('0.99', '1e-3', '0')
    """
    if abs(number) >= 0.005 or number == 0:
        return f"{number:.2f}" if number else "0"
    digit, exponent = f"{number:.0e}".split("e")
    return f"{digit}e{int(exponent)}"


def largest_difference(first: Any, second: Any) -> Cell:
    """Return the largest difference of two arrays, written out.

    Example:
        >>> from jaxattn.guide.section import largest_difference
        >>> largest_difference([0.25, 1 / 3], [0.25, 1 / 7])[:2]
        ('0.19', '0.3333 − 0.1429')
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    place = np.unravel_index(np.argmax(np.abs(first - second)), first.shape)
    low, high = sorted((float(first[place]), float(second[place])))
    # As many decimals as show the difference.
    decimals = 4 if high == low else max(4, 3 - math.floor(math.log10(high - low)))
    minus = f"({low:.{decimals}f})" if low < 0 else f"{low:.{decimals}f}"
    note = f"the entries at {tuple(map(int, place))}, where the arrays differ most"
    if 0 < high - low < 1e-5:
        note += ": float32 holds about seven digits, and another order of the steps rounds differently"
    return Cell(short(high - low), f"{high:.{decimals}f} − {minus}", note)


def setting(**switches: Any) -> str:
    """Name a setting of switches.

    Example:
        >>> from jaxattn.guide.section import setting
        >>> setting(rate=0.1, key=0)
        'rate=0.1&key=0'
    """
    return "&".join(f"{name}={value}" for name, value in switches.items())


def constant(array: Any, *axes: str, **shown: str) -> Numbers:
    """Wrap an array that depends on no switch; `shown` are symbol, kind and note."""
    return Numbers(axes, (), {"": np.asarray(array)}, **shown)


def single(number: float, **shown: str) -> Numbers:
    """Wrap one number as a matrix `(1, 1)`."""
    return constant(np.full((1, 1), number, np.float32), "", "", **({"kind": "plain"} | shown))


def by_switch(switch: str, arrays: Mapping[Any, Any], *axes: str, **shown: str) -> Numbers:
    """Wrap one array for each value of one switch."""
    return Numbers(axes, (switch,), {setting(**{switch: value}): np.asarray(a) for value, a in arrays.items()}, **shown)
