"""Section 3: the causal mask, before the softmax and after it."""

import jax.numpy as jnp

from jaxattn.functional import attention_weights, context_vectors, renormalized_weights
from jaxattn.guide.section import (
    Equation,
    Numbers,
    Section,
    Switch,
    Table,
    by_switch,
    constant,
    largest_difference,
    single,
)
from jaxattn.guide.sections.trainable import PROJECTIONS, SCORES, projection_numbers
from jaxattn.guide.story import Story
from jaxattn.guide.trace import Trace, trace
from jaxattn.stages import CausalAttention

PARAGRAPHS = [
    "A model that predicts the next word must not attend to it. The causal mask sets the scores of all later keys to "
    "−∞ before the softmax, which then gives them weight 0. Masking after the softmax instead leaves rows that no "
    "longer sum to 1; renormalized, divided by the sum of what is left, they equal those of the first way.",
    "This section and the next two have matrices of their own, as in the book: their queries and keys differ from "
    "those above.",
]
MASKINGS = [
    ("before", "masked before softmax"),
    ("after", "masked after softmax"),
    ("renormalized", "masked after softmax, then renormalized"),
]
SWITCHES = [Switch("way", "Where the mask comes", MASKINGS, "before")]
AFTER = {"way": ("after", "renormalized")}
SCALE = Equation("Scaled", "Divide by the square root of the width.", "scale", ["scores", "width"], "scaled")
MASK = Equation(
    "Masked", "Set the scores of keys that come after the query to −∞.", "mask", ["scaled", "mask"], "masked"
)
SOFTMAX = Equation(
    "Weights", "Softmax of each row: masked keys add nothing to the sum and get weight 0.", "softmax", ["masked"],
    "weights",
)  # fmt: skip
CONTEXT = Equation(
    "Context", "Average the values by each row of the weights.", "einsum", ["weights", "values"], "context", "rk,kc->rc"
)
EQUATIONS = [
    *PROJECTIONS,
    SCORES,
    SCALE,
    MASK._replace(when={"way": ("before",)}),
    SOFTMAX._replace(when={"way": ("before",)}),
    Equation("Softmax", "Softmax of each row, later keys included.", "softmax", ["scaled"], "unmasked", when=AFTER),
    Equation(
        "Masked weights", "Set the weights of later keys to 0. Rows no longer sum to 1.", "zero", ["unmasked", "mask"],
        "weights", when={"way": ("after",)},
    ),
    Equation(
        "Masked weights", "Set the weights of later keys to 0. Rows no longer sum to 1.", "zero", ["unmasked", "mask"],
        "zeroed", when={"way": ("renormalized",)},
    ),
    Equation(
        "Renormalized", "Divide each row by its new sum, so that it sums to 1 again.", "normalize", ["zeroed"],
        "weights", when={"way": ("renormalized",)},
    ),
    Equation("Sums of rows", "Do the weights of each row sum to 1?", "row_sum", ["weights"], "sums"),
    CONTEXT,
]  # fmt: skip
CODE = """\
from jaxattn import CausalAttention
attention = CausalAttention(features={features})
context, weights = attention.apply(variables, x, return_weights=True)"""


def causal_section(story: Story) -> Section:
    """Compute the section."""
    steps = trace(CausalAttention(2), story.causal, story.inputs)
    ways = _ways(steps)
    return Section(
        id="causal",
        title="3 Causal attention",
        tokens=story.tokens,
        query=story.query,
        paragraphs=PARAGRAPHS,
        numbers=causal_numbers(story, steps) | _by_way(steps, ways),
        equations=EQUATIONS,
        code=CODE.format(features=steps["queries"].shape[-1]),
        arcs="weights",
        switches=SWITCHES,
        labels={"sum": ["sum"]},
        tables=[_differences(ways)],
        opened=5,
    )


def causal_numbers(story: Story, steps: Trace) -> dict[str, Numbers]:
    """Collect everything up to the masked scores."""
    mask_note = "the causal mask: 1 where the key is the query or comes before it, 0 where it comes after"
    return projection_numbers(story, steps, story.causal["params"]) | {
        "width": single(steps["queries"].shape[-1], symbol="width", note="the number of elements of a key"),
        "scaled": constant(steps["scaled"], "query", "key", symbol="S′", kind="scores"),
        "mask": constant(steps["mask"], "query", "key", symbol="M", kind="plain", note=mask_note),
        "masked": constant(steps["masked"], "query", "key", symbol="S″", kind="scores"),
    }


def _ways(steps: Trace) -> dict[str, jnp.ndarray]:
    """Compute the weights in each of the three ways."""
    scale = steps["queries"].shape[-1] ** -0.5
    return {
        "before": steps["weights"],
        "after": jnp.where(steps["mask"], attention_weights(steps["scores"], scale=scale), 0),
        "renormalized": renormalized_weights(steps["scores"], steps["mask"], scale=scale),
    }


def _by_way(steps: Trace, ways: dict[str, jnp.ndarray]) -> dict[str, Numbers]:
    unmasked = attention_weights(steps["scores"], scale=steps["queries"].shape[-1] ** -0.5)
    sums = {way: weights.sum(-1, keepdims=True) for way, weights in ways.items()}
    contexts = {way: context_vectors(weights, steps["values"]) for way, weights in ways.items()}
    return {
        "unmasked": constant(unmasked, "query", "key", symbol="U", kind="weights"),
        "zeroed": constant(ways["after"], "query", "key", symbol="U′", kind="weights"),
        "weights": by_switch("way", ways, "query", "key", symbol="A", kind="weights"),
        "sums": by_switch("way", sums, "token", "sum", symbol="sums", kind="plain"),
        "context": by_switch("way", contexts, "token", "feature", symbol="Z"),
    }


def _differences(ways: dict[str, jnp.ndarray]) -> Table:
    names = dict(MASKINGS)
    rows = [(names[way], [largest_difference(ways[way], ways["before"])]) for way in ("after", "renormalized")]
    return Table("How far the weights are from those masked before softmax", ["weights", "largest difference"], rows)
