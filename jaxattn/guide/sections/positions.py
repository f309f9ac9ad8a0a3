"""After the book: positions by rotation (RoPE, Su et al. 2021)."""

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


def _by_shift(steps: Trace) -> dict[str, Numbers]:
    T, d = steps["queries"].shape
    angles, queries, keys, scores, scaled, weights = ({} for _ in range(6))
    for shift in SHIFTS:
        positions = jnp.arange(T) + shift
        angles[shift] = np.outer(positions, BASE ** (-2 * np.arange(d // 2) / d))
        queries[shift], keys[shift] = (_rotate(steps[name], positions) for name in ("queries", "keys"))
        scores[shift] = attention_scores(queries[shift], keys[shift])
        scaled[shift] = scores[shift] * jnp.float32(d**-0.5)
        weights[shift] = attention_weights(scores[shift], scale=d**-0.5)
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


def _same_pair(story: Story, steps: Trace) -> Table:
    """Put the same query and the same key at several positions."""
    query, key = steps["queries"][-1:], steps["keys"][:1]
    rows = []
    for distance in DISTANCES:
        cells = []
        for start in STARTS:
            rotated = _rotate(query, jnp.array([start + distance])), _rotate(key, jnp.array([start]))
            origin = f"the query at position {start + distance}, the key at position {start}"
            cells.append(Cell(f"{float(attention_scores(*rotated)[0, 0]):.4f}", origin))
        rows.append((str(distance), cells))
    title = f"The score of the query of “{story.tokens[-1]}” and the key of “{story.tokens[0]}”, put elsewhere"
    return Table(title, ["distance", *(f"key at position {start}" for start in STARTS)], rows)
