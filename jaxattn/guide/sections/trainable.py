"""Section 2: trainable query, key and value projections, and scaled scores."""

import itertools

import jax.numpy as jnp
import numpy as np

from jaxattn.functional import attention_weights, context_vectors
from jaxattn.guide.section import Equation, Numbers, Section, Switch, by_switch, constant, setting
from jaxattn.guide.story import Story
from jaxattn.guide.trace import Trace, trace
from jaxattn.stages import SelfAttention

TEMPERATURES = (0.5, 1.0, 2.0)

PARAGRAPHS = [
    "Three trainable matrices give each word three vectors: a query, what the word looks for; a key, what it is "
    "found by; and a value, what it contributes. A score is now the dot product of a query and a key, and the context "
    "vector is a weighted average of values.",
    "The more elements a vector has, the larger dot products become, and softmax of large scores gives nearly all the "
    "weight to one word. So scores are divided by the square root of the key's width. A temperature divides them "
    "again: below 1 it sharpens the weights, above 1 it evens them out.",
]
SWITCHES = [
    Switch("scaling", "Divide by the square root of the width", [("on", "on"), ("off", "off")], "on"),
    Switch("temperature", "Temperature", [(str(t), str(t)) for t in TEMPERATURES], "1.0"),
]
PROJECTIONS = [
    Equation("Queries", "Each word's vector times W_q.", "einsum", ["inputs", "W query"], "queries", "rk,kc->rc"),
    Equation("Keys", "Each word's vector times W_k.", "einsum", ["inputs", "W key"], "keys", "rk,kc->rc"),
    Equation("Values", "Each word's vector times W_v.", "einsum", ["inputs", "W value"], "values", "rk,kc->rc"),
]
SCORES = Equation("Scores", "Compare every query with every key.", "einsum", ["queries", "keys"], "scores", "rk,ck->rc")
EQUATIONS = [
    *PROJECTIONS,
    SCORES,
    Equation(
        "Scaled scores",
        "Divide by the square root of the width, and by the temperature.",
        "scale",
        ["scores", "width", "temperature"],
        "scaled",
    ),
    Equation("Weights", "Softmax of each row: exponentials, divided by their sum.", "softmax", ["scaled"], "weights"),
    Equation(
        "Context", "Average the values by each row of the weights.", "einsum", ["weights", "values"], "context",
        "rk,kc->rc",
    ),
]  # fmt: skip
CODE = """\
from jaxattn import SelfAttention
attention = SelfAttention(features={features})
context, weights = attention.apply(variables, x, return_weights=True)"""


def trainable_section(story: Story) -> Section:
    """Compute the section."""
    steps = trace(SelfAttention(2), story.trainable, story.inputs)
    return Section(
        id="trainable",
        title="2 Trainable weights",
        tokens=story.tokens,
        query=story.query,
        paragraphs=PARAGRAPHS,
        numbers=projection_numbers(story, steps, story.trainable["params"]) | _by_scale(steps),
        equations=EQUATIONS,
        code=CODE.format(features=steps["queries"].shape[-1]),
        arcs="weights",
        switches=SWITCHES,
    )


def projection_numbers(story: Story, steps: Trace, params: dict) -> dict[str, Numbers]:
    """Collect the inputs, the parameters, and what follows up to the scores."""
    numbers = {"inputs": constant(steps["inputs"], "token", "feature", symbol="X", note=story.input_note)}
    for name in ("query", "key", "value"):
        kernel, symbol = params[name]["kernel"], f"W_{name[0]}"
        numbers[f"W {name}"] = constant(kernel, "input", "feature", symbol=symbol, note=story.parameter_note)
    for name, symbol in (("queries", "Q"), ("keys", "K"), ("values", "V")):
        numbers[name] = constant(steps[name], "token", "feature", symbol=symbol)
    return numbers | {"scores": constant(steps["scores"], "query", "key", symbol="S", kind="scores")}


def _by_scale(steps: Trace) -> dict[str, Numbers]:
    """Compute what follows from the scores, for each scale."""
    scores, D = steps["scores"], steps["queries"].shape[-1]
    scaled, weights, context = {}, {}, {}
    for scaling, temperature in itertools.product(("on", "off"), TEMPERATURES):
        where = setting(scaling=scaling, temperature=temperature)
        scale = (D**-0.5 if scaling == "on" else 1.0) / temperature
        scaled[where] = np.asarray(scores * jnp.float32(scale))
        softmax = attention_weights(scores, scale=scale)
        weights[where], context[where] = np.asarray(softmax), np.asarray(context_vectors(softmax, steps["values"]))
    switches = ("scaling", "temperature")
    widths = {"on": np.full((1, 1), D, np.float32), "off": np.ones((1, 1), np.float32)}
    temperatures = {t: np.full((1, 1), t, np.float32) for t in TEMPERATURES}
    return {
        "width": by_switch(
            "scaling", widths, "", "", symbol="width", kind="plain", note="the number of elements of a key"
        ),
        "temperature": by_switch("temperature", temperatures, "", "", symbol="t", kind="plain", note="chosen above"),
        "scaled": Numbers(("query", "key"), switches, scaled, "S′", "scores"),
        "weights": Numbers(("query", "key"), switches, weights, "A", "weights"),
        "context": Numbers(("token", "feature"), switches, context, "Z"),
    }
