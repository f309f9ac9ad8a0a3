"""Section 2: trainable query, key and value projections, and scaled scores."""

import itertools

import jax.numpy as jnp
import numpy as np

from jaxattn.functional import attention_weights, context_vectors
from jaxattn.guide.section import Figure, Numbers, Section, Step, Switch, constant, setting, token_labels
from jaxattn.guide.story import Story
from jaxattn.guide.trace import Trace, trace
from jaxattn.stages import SelfAttention

TEMPERATURES = (0.5, 1.0, 2.0)

PARAGRAPHS = [
    "Three trainable matrices give each token three vectors: a query, what the token looks for; a key, what it is "
    "found by; and a value, what it contributes. A score is now the dot product of a query and a key, and the context "
    "vector is a weighted average of values.",
    "The more elements a vector has, the larger dot products become, and softmax of large scores gives nearly all the "
    "weight to one token. So scores are divided by the square root of the key's width. A temperature divides them "
    "again: below 1 it sharpens the weights, above 1 it evens them out.",
]
SWITCHES = [
    Switch("scaling", "Divide by the square root of the width", [("on", "on"), ("off", "off")], "on"),
    Switch("temperature", "Temperature", [(str(t), str(t)) for t in TEMPERATURES], "1.0"),
]
STEPS = [
    Step("query", "the token's vector times W query", "queries"),
    Step("score", "the query times each key", "scores"),
    Step("scale", "divided by the square root of the width, and by the temperature", "scaled"),
    Step("softmax", "normalized to positive weights that sum to 1", "weights"),
    Step("context", "the average of the values by these weights", "context"),
]
FIGURES = [
    Figure("Input vectors, x", "inputs", "values"),
    Figure("W query", "W query", "values"),
    Figure("W key", "W key", "values"),
    Figure("W value", "W value", "values"),
    Figure("Queries", "queries", "values"),
    Figure("Keys", "keys", "values"),
    Figure("Values", "values", "values"),
    Figure("Scores", "scores", "scores"),
    Figure("Scaled scores", "scaled", "scores"),
    Figure("Weights", "weights", "weights"),
    Figure("Context vectors", "context", "values"),
]
CODE = """\
from jaxattn import SelfAttention
attention = SelfAttention(features={features})
context, weights = attention.apply(variables, x, return_weights=True)"""


def trainable_section(story: Story) -> Section:
    """Compute the section."""
    steps = trace(SelfAttention(2), story.trainable, story.inputs)
    numbers = _numbers(story, steps) | _by_scale(steps)
    code, labels = CODE.format(features=steps["queries"].shape[-1]), token_labels(story)
    title = "2 Trainable weights"
    return Section("trainable", title, PARAGRAPHS, SWITCHES, numbers, "weights", STEPS, FIGURES, code, labels)


def _numbers(story: Story, steps: Trace) -> dict[str, Numbers]:
    names, params = ("inputs", "queries", "keys", "values", "scores"), story.trainable["params"]
    matrices = {f"W {name}": constant(params[name]["kernel"], "input", "feature") for name in ("query", "key", "value")}
    return {name: constant(steps[name], *steps.axes(name)) for name in names} | matrices


def _by_scale(steps: Trace) -> dict[str, Numbers]:
    """Compute what follows from the scores, for each scale."""
    scores, root = steps["scores"], steps["queries"].shape[-1] ** -0.5
    scaled, weights, context = {}, {}, {}
    for scaling, temperature in itertools.product(("on", "off"), TEMPERATURES):
        where = setting(scaling=scaling, temperature=temperature)
        scale = (root if scaling == "on" else 1.0) / temperature
        scaled[where] = np.asarray(scores * jnp.float32(scale))
        softmax = attention_weights(scores, scale=scale)
        weights[where], context[where] = np.asarray(softmax), np.asarray(context_vectors(softmax, steps["values"]))
    switches = ("scaling", "temperature")
    return {
        "scaled": Numbers(("query", "key"), switches, scaled),
        "weights": Numbers(("query", "key"), switches, weights),
        "context": Numbers(("token", "feature"), switches, context),
    }
