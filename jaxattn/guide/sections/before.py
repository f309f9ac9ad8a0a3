"""What came before: additive attention (Bahdanau et al. 2014), beside the dot product."""

import jax
import numpy as np

from jaxattn.additive import additive_scores
from jaxattn.functional import attention_weights, context_vectors
from jaxattn.guide.section import Equation, Numbers, Section, Switch, by_switch, constant
from jaxattn.guide.sections.trainable import PROJECTIONS, projection_numbers
from jaxattn.guide.story import Story
from jaxattn.guide.trace import Trace, trace
from jaxattn.stages import SelfAttention

PARAGRAPHS = [
    "Attention is older than the transformer. Bahdanau et al. (2014) let a translator look back at the words of the "
    "other language: a small neural network compared each query with each key. It added the two vectors, applied tanh, "
    "and weighted the sum of the elements by a trained vector v.",
    "Query, key and value are three vectors of each word, what it looks for, what it is found by, and what it "
    "contributes; section 2 introduces them, and here are its numbers. The dot product asks the same question with one "
    "multiplication of matrices. What follows is the same for both: softmax turns scores into weights that sum to 1, "
    "and the weights average the values.",
    "The rest does not depend on this section: skip it at first, and come back after section 2.",
]
SWITCHES = [Switch("way", "Scores", [("additive", "additive"), ("product", "dot product")], "additive")]
EQUATIONS = [
    *PROJECTIONS,
    Equation(
        "Scores", "Add each query and each key, apply tanh, and sum the elements, weighted by v.", "additive",
        ["queries", "keys", "v"], "scores", when={"way": ("additive",)},
    ),
    Equation(
        "Scores", "Multiply each query and each key, and sum the elements.", "einsum", ["queries", "keys"], "scores",
        "rk,ck->rc", {"way": ("product",)},
    ),
    Equation("Weights", "Softmax of each row.", "softmax", ["scores"], "weights"),
    Equation(
        "Context", "Average the values by each row of the weights.", "einsum", ["weights", "values"], "context",
        "rk,kc->rc",
    ),
]  # fmt: skip
CODE = """\
from jaxattn import additive_scores, attention_weights, context_vectors
weights = attention_weights(additive_scores(queries, keys, v))
context = context_vectors(weights, values)"""


_additive = jax.jit(additive_scores)


def before_section(story: Story) -> Section:
    """Compute the section."""
    steps = trace(SelfAttention(2), story.trainable, story.inputs)
    return Section(
        id="before",
        title="Before: additive attention",
        tokens=story.tokens,
        query=story.query,
        paragraphs=PARAGRAPHS,
        numbers=projection_numbers(story, steps, story.trainable["params"]) | _by_way(steps),
        equations=EQUATIONS,
        code=CODE,
        arcs="weights",
        switches=SWITCHES,
        labels={"v": ["v"]},
        closing=_closing(steps),
        opened=3,
    )


def _by_way(steps: Trace) -> dict[str, Numbers]:
    v = np.ones(steps["queries"].shape[-1], np.float32)
    scores = {"additive": _additive(steps["queries"], steps["keys"], v), "product": steps["scores"]}
    weights = {way: attention_weights(each) for way, each in scores.items()}
    context = {way: context_vectors(each, steps["values"]) for way, each in weights.items()}
    return {
        "v": constant(v[None], "v", "feature", symbol="v", note="a parameter; here 1 for each element"),
        "scores": by_switch("way", scores, "query", "key", symbol="S", kind="scores"),
        "weights": by_switch("way", weights, "query", "key", symbol="A", kind="weights"),
        "context": by_switch("way", context, "token", "feature", symbol="Z"),
    }


def _closing(steps: Trace) -> list[str]:
    """State how the two kinds of scores differ, in numbers of the library."""
    queries, keys = (np.asarray(steps[name]) for name in ("queries", "keys"))
    v = np.ones(queries.shape[-1], np.float32)
    additive = np.abs(_additive(10 * queries, 10 * keys, v)).max()
    before, product = (np.abs(each).max() for each in (queries @ keys.T, (10 * queries) @ (10 * keys).T))
    return [
        "tanh stays between −1 and 1, so additive scores cannot exceed the sum of |v|. Dot products grow with their "
        "vectors: with queries and keys ten times as long, the largest dot product grows a hundredfold, from "
        f"{before:.2f} to {product:.2f}, the largest additive score only to {additive:.2f}. They grow with the width "
        "as well, for which section 2 makes up: it divides them by its square root.",
    ]
