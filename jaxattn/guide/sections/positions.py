"""After the book: positions by rotation (RoPE, Su et al. 2021)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn.functional import attention_scores, attention_weights
from jaxattn.guide.section import Cell, Equation, Numbers, Section, Switch, Table, by_switch, single
from jaxattn.guide.sections.trainable import PROJECTIONS, projection_numbers
from jaxattn.guide.story import Story
from jaxattn.guide.trace import Trace, trace
from jaxattn.rotary import rotate
from jaxattn.stages import SelfAttention

SHIFTS, BASE = (0, 1, 10, 100), 10_000.0
DISTANCES, STARTS = (0, 1, 2, 3), (0, 7, 500)

PARAGRAPHS = [
    "So far a score depends on two vectors alone, not on where the words stand: shuffle the words, and each keeps its "
    "context. GPT-2 adds a trained vector to each position. Most models since rotate queries and keys instead: at "
    "position t by t times a fixed angle, as a clock's hand.",
    "Two hands that both turn by the same angle keep the angle between them, and so their dot product. Hence a score "
    "depends on the two vectors and on the distance of the words, not on where the pair stands: move the whole "
    "sentence below, and the rotated vectors change, but no score does.",
]
SWITCHES = [Switch("shift", "Position of the first word", [(str(shift), str(shift)) for shift in SHIFTS], "0")]
EQUATIONS = [
    *PROJECTIONS[:2],
    Equation(
        "Rotated queries", "Rotate each query by its word's angle.", "rotate", ["queries", "angles"], "rotated queries"
    ),
    Equation("Rotated keys", "Rotate each key by its word's angle.", "rotate", ["keys", "angles"], "rotated keys"),
    Equation(
        "Scores", "Compare the rotated vectors. Choose another position of the first word: nothing changes here.",
        "einsum", ["rotated queries", "rotated keys"], "rotated scores", "rk,ck->rc",
    ),
    Equation("Scaled", "Divide by the square root of the width.", "scale", ["rotated scores", "width"], "scaled"),
    Equation("Weights", "Softmax of each row.", "softmax", ["scaled"], "weights"),
]  # fmt: skip
CODE = """\
from jaxattn import attention_scores
from jaxattn.rotary import rotate
# queries, keys (T, H, D), positions (T,)
q, k = rotate(queries, positions), rotate(keys, positions)
scores = attention_scores(q.swapaxes(0, 1), k.swapaxes(0, 1))  # (H, T, T)"""


def positions_section(story: Story) -> Section:
    """Compute the section."""
    steps = trace(SelfAttention(2), story.trainable, story.inputs)
    numbers = projection_numbers(story, steps, story.trainable["params"])
    return Section(
        id="positions",
        title="After the book: positions by rotation",
        tokens=story.tokens,
        query=story.query,
        paragraphs=PARAGRAPHS,
        numbers={name: numbers[name] for name in ("inputs", "W query", "W key", "queries", "keys")} | _by_shift(steps),
        equations=EQUATIONS,
        code=CODE,
        arcs="weights",
        switches=SWITCHES,
        tables=[_same_pair(story, steps)],
        opened=4,
    )


def _rotate(vectors: Array, positions: Array) -> Array:
    """Rotate vectors `(T, d)` of one head."""
    return rotate(vectors[:, None], positions, BASE)[:, 0]


@jax.jit
def _attend(queries: Array, keys: Array, positions: Array) -> tuple[Array, ...]:
    """Rotate queries and keys, and compute their scores, scaled scores and weights."""
    scale = queries.shape[-1] ** -0.5
    queries, keys = _rotate(queries, positions), _rotate(keys, positions)
    scores = attention_scores(queries, keys)
    return queries, keys, scores, scores * jnp.float32(scale), attention_weights(scores, scale=scale)


def _by_shift(steps: Trace) -> dict[str, Numbers]:
    T, d = steps["queries"].shape
    positions = {shift: np.arange(T) + shift for shift in SHIFTS}
    angles = {shift: np.outer(each, BASE ** (-2 * np.arange(d // 2) / d)) for shift, each in positions.items()}
    turned = {shift: _attend(steps["queries"], steps["keys"], each) for shift, each in positions.items()}
    queries, keys, scores, scaled, weights = (
        {shift: arrays[which] for shift, arrays in turned.items()} for which in range(5)
    )
    angle_note = "the word's position, times 1 radian for the first pair of elements"
    width_note = "the number of elements of a key"
    return {
        "angles": by_switch("shift", angles, "token", "pair", symbol="θ", kind="plain", note=angle_note),
        "rotated queries": by_switch("shift", queries, "token", "feature", symbol="Q_r"),
        "rotated keys": by_switch("shift", keys, "token", "feature", symbol="K_r"),
        "rotated scores": by_switch("shift", scores, "query", "key", symbol="S", kind="scores"),
        "width": single(d, symbol="width", note=width_note),
        "scaled": by_switch("shift", scaled, "query", "key", symbol="S′", kind="scores"),
        "weights": by_switch("shift", weights, "query", "key", symbol="A", kind="weights"),
    }


@jax.jit
def _moved_scores(query: Array, key: Array, to: Array, start: Array) -> Array:
    """Return the score of a query and a key at each pair of positions."""
    at = lambda vector, position: _rotate(vector[None], position[None])  # noqa: E731
    score = lambda to, start: attention_scores(at(query, to), at(key, start))[0, 0]  # noqa: E731
    return jax.vmap(jax.vmap(score))(to, start)


def _turned(vector: np.ndarray, angle: int, element: int) -> str:
    """Write out an element of a vector of two that is rotated by this angle."""
    own, other = (f"{number:.7f}" if number >= 0 else f"({number:.7f})" for number in vector[[element, 1 - element]])
    return f"({own} · cos({angle}) {'+' if element else '−'} {other} · sin({angle}))"


def _same_pair(story: Story, steps: Trace) -> Table:
    """Put the same query and the same key at several positions."""
    query, key = np.asarray(steps["queries"])[-1], np.asarray(steps["keys"])[0]
    starts = np.tile(STARTS, (len(DISTANCES), 1))
    scores = np.asarray(_moved_scores(query, key, starts + np.array(DISTANCES)[:, None], starts))
    rows = []
    for distance, row in zip(DISTANCES, scores, strict=True):
        cells = []
        for start, score in zip(STARTS, row, strict=True):
            note = f"the query rotated to position {start + distance}, times the key rotated to position {start}"
            arithmetic = f"{_turned(query, start + distance, 0)} · {_turned(key, start, 0)} + "
            arithmetic += f"{_turned(query, start + distance, 1)} · {_turned(key, start, 1)}"
            cells.append(Cell(f"{score:.4f}", arithmetic, note))
        rows.append((str(distance), cells))
    title = f"The score of the query of “{story.tokens[-1]}” and the key of “{story.tokens[0]}”, put elsewhere"
    return Table(title, ["distance", *(f"key at position {start}" for start in STARTS)], rows)
