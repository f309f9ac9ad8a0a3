"""Section 3: the causal mask, before the softmax and after it, and dropout."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn.functional import attention_weights, context_vectors, dropout, renormalized_weights
from jaxattn.guide.section import Figure, Numbers, Section, Step, Switch, by_switch, constant, setting, token_labels
from jaxattn.guide.story import Story
from jaxattn.guide.trace import Trace, trace
from jaxattn.stages import CausalAttention

RATES, KEYS = (0.0, 0.1, 0.2, 0.5), (0, 1, 2)

PARAGRAPHS = [
    "A model that predicts the next token must not attend to it. The causal mask sets the scores of all later keys to "
    "−∞ before the softmax, which then gives them weight 0. Masking after the softmax instead leaves rows that no "
    "longer sum to 1; renormalized, divided by the sum of what is left, they equal those of the first way.",
    "Dropout, used only in training, sets weights to 0 at random and multiplies the others by 1 / (1 − rate), so that "
    "a row still sums to 1 on average, though a single row rarely does. The same random key drops the same entries: "
    "choose a rate above 0 to see it.",
]
MASKINGS = [
    ("before", "before the softmax"),
    ("after", "after the softmax"),
    ("renormalized", "after the softmax, then renormalized"),
]
SWITCHES = [
    Switch("way", "Mask", MASKINGS, "before"),
    Switch("rate", "Dropout rate", [(str(rate), str(rate)) for rate in RATES], "0.0"),
    Switch("key", "Random key of dropout", [(str(key), str(key)) for key in KEYS], "0"),
]
STEPS = [
    Step("score", "the query times each key", "scores"),
    Step("scale", "divided by the square root of the width", "scaled"),
    Step("mask", "−∞ for keys after the query, if the mask comes before the softmax", "before softmax"),
    Step("softmax", "normalized to positive weights that sum to 1", "softmax"),
    Step("weights", "0 for keys after the query, wherever the mask comes, and renormalized if chosen", "weights"),
    Step("dropout", "some weights set to 0, the others multiplied", "kept weights"),
    Step("context", "the average of the values by these weights", "context"),
]
FIGURES = [
    Figure("Queries", "queries", "values"),
    Figure("Keys", "keys", "values"),
    Figure("Scaled scores, masked entries −∞", "masked", "scores", "mask"),
    Figure("Weights", "ways", "weights", "mask"),
    Figure("Largest difference between the three", "differences", "plain"),
    Figure("Entries that dropout keeps", "kept", "weights"),
    Figure("Weights after dropout", "kept weights", "weights", "mask"),
    Figure("Sums of these rows", "sums", "plain"),
    Figure("Values", "values", "values"),
    Figure("Context vectors", "context", "values"),
]
CODE = """\
import jax
from jaxattn import CausalAttention
attention = CausalAttention(features={features}, dropout_rate=0.5)
context = attention.apply(variables, x, deterministic=False, dropout_key=jax.random.key(0))"""


def causal_section(story: Story) -> Section:
    """Compute the section."""
    steps = trace(CausalAttention(2), story.causal, story.inputs)
    features = steps["queries"].shape[-1]
    unmasked = attention_weights(steps["scores"], scale=features**-0.5)
    ways = {
        "before": steps["weights"],
        "after": jnp.where(steps["mask"], unmasked, 0),
        "renormalized": renormalized_weights(steps["scores"], steps["mask"], scale=features**-0.5),
    }
    numbers = _by_way(steps, unmasked, ways) | _by_dropout(steps, ways)
    labels = token_labels(story) | {"way": ["masked before", "masked after", "renormalized"], "sum": ["sum"]}
    title, code = "3 Causal attention and dropout", CODE.format(features=features)
    return Section("causal", title, PARAGRAPHS, SWITCHES, numbers, "kept weights", STEPS, FIGURES, code, labels)


def _by_way(steps: Trace, unmasked: Array, ways: dict[str, Array]) -> dict[str, Numbers]:
    """Collect what does not depend on dropout."""
    names = ("queries", "keys", "values", "scores", "scaled", "mask", "masked")
    before_softmax = {"before": steps["masked"], "after": steps["scaled"], "renormalized": steps["scaled"]}
    softmax = {"before": steps["weights"], "after": unmasked, "renormalized": unmasked}
    differences = [[jnp.abs(a - b).max() for b in ways.values()] for a in ways.values()]
    return {name: constant(steps[name], *steps.axes(name)) for name in names} | {
        "before softmax": by_switch("way", before_softmax, "query", "key"),
        "softmax": by_switch("way", softmax, "query", "key"),
        "weights": by_switch("way", ways, "query", "key"),
        "ways": constant(jnp.stack(list(ways.values())), "way", "query", "key"),
        "differences": constant(jnp.array(differences), "way", "way"),
    }


def _by_dropout(steps: Trace, ways: dict[str, Array]) -> dict[str, Numbers]:
    """Compute what follows from the weights, for each rate and random key."""
    kept, kept_weights, sums, context = {}, {}, {}, {}
    for rate, key in itertools.product(RATES, KEYS):
        kept[setting(rate=rate, key=key)] = np.asarray(_drop(jnp.ones_like(steps["weights"]), rate, key) > 0)
        for way, weights in ways.items():
            where, dropped = setting(way=way, rate=rate, key=key), _drop(weights, rate, key)
            kept_weights[where] = np.asarray(dropped)
            sums[where] = np.asarray(dropped.sum(-1, keepdims=True))
            context[where] = np.asarray(context_vectors(dropped, steps["values"]))
    switches = ("way", "rate", "key")
    return {
        "kept": Numbers(("query", "key"), ("rate", "key"), kept),
        "kept weights": Numbers(("query", "key"), switches, kept_weights),
        "sums": Numbers(("token", "sum"), switches, sums),
        "context": Numbers(("token", "feature"), switches, context),
    }


def _drop(weights: Array, rate: float, key: int) -> Array:
    return dropout(weights, rate, jax.random.key(key)) if rate else weights
