"""Section 3, continued: dropout of the weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn.functional import context_vectors, dropout
from jaxattn.guide.section import Equation, Numbers, Section, Switch, by_switch, constant, setting
from jaxattn.guide.sections.causal import MASK, SCALE, SOFTMAX, causal_numbers
from jaxattn.guide.sections.trainable import PROJECTIONS, SCORES
from jaxattn.guide.story import Story
from jaxattn.guide.trace import Trace, trace
from jaxattn.random_bits import draw_bits, entry_bits
from jaxattn.stages import CausalAttention

RATES, KEYS = (0.0, 0.1, 0.2, 0.5), (0, 1, 2)

PARAGRAPHS = [
    "In training only, dropout sets weights to 0 at random, so that the model does not rely on any single word. For "
    "each weight a number between 0 and 1 is drawn: below the rate, the weight is dropped, otherwise it is kept.",
    "What is kept is multiplied by 1 / (1 − rate), not by 1 / rate: so a row still sums to 1 on average, though a "
    "single row rarely does. Masked weights are 0 and stay 0. The same random key drops the same entries.",
]
SWITCHES = [
    Switch("rate", "Dropout rate", [(str(rate), str(rate)) for rate in RATES], "0.5"),
    Switch("key", "Random key", [(str(key), str(key)) for key in KEYS], "0"),
]
EQUATIONS = [
    *PROJECTIONS,
    SCORES,
    SCALE,
    MASK,
    SOFTMAX,
    Equation(
        "Dropout", "Drop a weight if its draw is below the rate; otherwise multiply it by 1 / (1 − rate).", "dropout",
        ["weights", "draws", "rate"], "kept weights",
    ),
    Equation("Sums of rows", "What is left in each row; without dropout it is 1.", "row_sum", ["kept weights"], "sums"),
    Equation(
        "Context", "Average the values by what is kept.", "einsum", ["kept weights", "values"], "context", "rk,kc->rc"
    ),
]  # fmt: skip
CODE = """\
import jax
from jaxattn import CausalAttention
attention = CausalAttention(features={features}, dropout_rate=0.5)
context = attention.apply(variables, x, deterministic=False, dropout_key=jax.random.key(0))"""


def dropout_section(story: Story) -> Section:
    """Compute the section."""
    steps = trace(CausalAttention(2), story.causal, story.inputs)
    weights = constant(steps["weights"], "query", "key", symbol="A", kind="weights")
    return Section(
        id="dropout",
        title="3 continued: dropout",
        tokens=story.tokens,
        query=story.query,
        paragraphs=PARAGRAPHS,
        numbers=causal_numbers(story, steps) | {"weights": weights} | _by_dropout(steps),
        equations=EQUATIONS,
        code=CODE.format(features=steps["queries"].shape[-1]),
        arcs="kept weights",
        switches=SWITCHES,
        labels={"sum": ["sum"]},
        opened=7,
    )


def _by_dropout(steps: Trace) -> dict[str, Numbers]:
    """Compute what follows from the weights, for each rate and random key."""
    weights, values = steps["weights"], steps["values"]
    dropped = {key: jax.device_get(_drop(weights, np.uint32(key))) for key in KEYS}
    kept_weights, sums, context = {}, {}, {}
    for rate, key in itertools.product(RATES, KEYS):
        where = setting(rate=rate, key=key)
        kept_weights[where] = kept = np.asarray(dropped[key][str(rate)] if rate else weights)
        sums[where] = kept.sum(-1, keepdims=True)
        context[where] = np.asarray(context_vectors(jnp.asarray(kept), values))
    draws = {key: np.where(np.asarray(steps["mask"]), dropped[key]["draws"], np.nan) for key in KEYS}
    rates = {rate: np.full((1, 1), rate, np.float32) for rate in RATES}
    draw_note = "drawn at random from 0 to 1, by the random key chosen above"
    return {
        "draws": by_switch("key", draws, "query", "key", symbol="draws", kind="plain", note=draw_note),
        "rate": by_switch("rate", rates, "", "", symbol="rate", kind="plain", note="chosen above"),
        "kept weights": Numbers(("query", "key"), ("rate", "key"), kept_weights, "A′", "weights"),
        "sums": Numbers(("token", "sum"), ("rate", "key"), sums, "sums", "plain"),
        "context": Numbers(("token", "feature"), ("rate", "key"), context, "Z"),
    }


@jax.jit
def _drop(weights: Array, seed: Array) -> dict[str, Array]:
    """Drop at each rate by one key, and return the draws too."""
    key = jax.random.key(seed)
    return {str(rate): dropout(weights, rate, key) for rate in RATES if rate} | {"draws": _draws(key, weights.shape)}


def _draws(key: Array, shape: tuple[int, ...]) -> Array:
    """Return the bits by which `dropout` decides, as numbers in [0, 1)."""
    return entry_bits(*draw_bits(key, shape)).astype(jnp.float32) / jnp.float32(2**32)
