"""The page's sections: every number that they show, for every position of their switches, computed by the library."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.functional import attention_weights, context_vectors, dropout, renormalized_weights
from jaxattn.guide.section import Choice, Figure, Numbers, Section, Step, each_of, of_tokens, one, position
from jaxattn.guide.sections_of_heads import heads_section, trained_section
from jaxattn.guide.story import Story
from jaxattn.guide.trace import trace
from jaxattn.stages import CausalAttention, SelfAttention, SimpleSelfAttention

TEMPERATURES, RATES, KEYS = (0.5, 1.0, 2.0), (0.0, 0.1, 0.2, 0.5), (0, 1, 2)


def make_sections(story: Story) -> list[Section]:
    """Compute all sections of the page.

    Example:
        >>> from jaxattn.guide.sections import make_sections
        >>> from jaxattn.guide.story import book_story
        >>> [section.id for section in make_sections(book_story())]
        ['simple', 'trainable', 'causal', 'heads']
    """
    sections = [_simple(story), _trainable(story), _causal(story), heads_section(story)]
    return [trained_section(story), *sections] if story.layers else sections


def _simple(story: Story) -> Section:
    steps = trace(SimpleSelfAttention(), {}, story.inputs)
    x, scores = story.inputs, steps["scores"]
    ways = {"softmax": steps["weights"], "divide": scores / scores.sum(-1, keepdims=True)}
    numbers = {
        "inputs": one(x, "token", "feature"),
        "products": one(x[:, None] * x[None], "query", "key", "feature"),
        "scores": one(scores, "query", "key"),
        "weights": each_of("way", ways, "query", "key"),
        "shares": each_of("way", {k: w[..., None] * x[None] for k, w in ways.items()}, "query", "key", "feature"),
        "context": each_of("way", {k: context_vectors(w, x) for k, w in ways.items()}, "token", "feature"),
    }
    return Section(
        "simple",
        "1 Simplified self-attention",
        [
            "Each token asks all tokens, itself among them: how alike are we? The answer is a dot product of their two "
            "vectors. Softmax turns a token's scores into shares that are positive and sum to 1, and with these shares "
            "all vectors are averaged: these shares are the weights, and the average is the token's context vector.",
            "Dividing the scores by their sum would make them sum to 1 as well, as long as none is negative; softmax "
            "always does, and leans towards the largest.",
        ],
        [Choice("way", "From scores to weights", [("softmax", "softmax"), ("divide", "divide by the sum")], "softmax")],
        numbers,
        "weights",
        [
            Step("products", "each key's vector times the query's, number by number", "products"),
            Step("score", "the products added up: one score for each key", "scores"),
            Step("weights", "the scores as shares that sum to 1", "weights"),
            Step("weighted vectors", "each key's vector times its weight", "shares"),
            Step("context", "these added up: the context vector", "context"),
        ],
        [
            Figure("Input vectors", "inputs", "values"),
            Figure("Scores", "scores", "scores"),
            Figure("Weights", "weights", "weights"),
            Figure("Context vectors", "context", "values"),
        ],
        "from jaxattn import SimpleSelfAttention\n"
        "attention = SimpleSelfAttention()\n"
        "context, weights = attention.apply({}, x, return_weights=True)",
        of_tokens(story),
    )


def _trainable(story: Story) -> Section:
    steps = trace(SelfAttention(2), story.trainable, story.inputs)
    root = steps["query"].shape[-1] ** -0.5
    scaled, weights, context = {}, {}, {}
    for scaling, temperature in itertools.product(("on", "off"), TEMPERATURES):
        where = position(scaling=scaling, temperature=temperature)
        scale = (root if scaling == "on" else 1.0) / temperature
        scaled[where] = np.asarray(steps["scores"] * jnp.float32(scale))
        each = attention_weights(steps["scores"], scale=scale)
        weights[where], context[where] = np.asarray(each), np.asarray(context_vectors(each, steps["value"]))
    both = ("scaling", "temperature")
    numbers = {name: one(steps[name], *steps.axes(name)) for name in ("inputs", "query", "key", "value", "scores")}
    numbers |= {
        "scaled": Numbers(("query", "key"), both, scaled),
        "weights": Numbers(("query", "key"), both, weights),
        "context": Numbers(("token", "feature"), both, context),
    }
    params = story.trainable["params"]
    numbers |= {f"W {name}": one(params[name]["kernel"], "input", "feature") for name in ("query", "key", "value")}
    return Section(
        "trainable",
        "2 Trainable weights",
        [
            "Three matrices, which training can change, give every token three vectors: a query, what it asks for; a "
            "key, by which it is found; and a value, what it has to say. Scores are now query times key, and the "
            "context averages values.",
            "The more numbers a vector has, the larger the dot products, and the more softmax would give all to one "
            "token. So scores are divided by the square root of how many a key has. A temperature divides them once "
            "more: a low one sharpens, a high one evens out.",
        ],
        [
            Choice("scaling", "Divide by the root of the width", [("on", "on"), ("off", "off")], "on"),
            Choice("temperature", "Temperature", [(str(t), str(t)) for t in TEMPERATURES], "1.0"),
        ],
        numbers,
        "weights",
        [
            Step("query", "the token's vector times W query", "query"),
            Step("score", "the query times each key", "scores"),
            Step("scale", "divided by the root of the width and the temperature", "scaled"),
            Step("softmax", "as shares that sum to 1", "weights"),
            Step("context", "the values, averaged with these shares", "context"),
        ],
        [
            Figure("Input vectors, x", "inputs", "values"),
            Figure("W query", "W query", "values"),
            Figure("W key", "W key", "values"),
            Figure("W value", "W value", "values"),
            Figure("Queries", "query", "values"),
            Figure("Keys", "key", "values"),
            Figure("Values", "value", "values"),
            Figure("Scores", "scores", "scores"),
            Figure("Scaled scores", "scaled", "scores"),
            Figure("Weights", "weights", "weights"),
            Figure("Context vectors", "context", "values"),
        ],
        "from jaxattn import SelfAttention\n"
        f"attention = SelfAttention(features={steps['query'].shape[-1]})\n"
        "context, weights = attention.apply(variables, x, return_weights=True)",
        of_tokens(story),
    )


def _causal(story: Story) -> Section:
    steps = trace(CausalAttention(2), story.causal, story.inputs)
    scores, mask, scale = steps["scores"], steps["mask"], steps["query"].shape[-1] ** -0.5
    plain = attention_weights(scores, scale=scale)
    ways = {
        "before": steps["weights"],
        "after": jnp.where(mask, plain, 0),
        "renormalised": renormalized_weights(scores, mask, scale=scale),
    }
    kept, dropped, sums, context = {}, {}, {}, {}
    for rate, key in itertools.product(RATES, KEYS):
        drop = lambda array, rate=rate, key=key: dropout(array, rate, jax.random.key(key)) if rate else array  # noqa: E731
        kept[position(rate=rate, key=key)] = np.asarray(drop(jnp.ones_like(plain)) > 0)
        for way, weights in ways.items():
            where, left = position(way=way, rate=rate, key=key), drop(weights)
            dropped[where], context[where] = np.asarray(left), np.asarray(context_vectors(left, steps["value"]))
            sums[where] = np.asarray(left.sum(-1, keepdims=True))
    differences = [[jnp.abs(a - b).max() for b in ways.values()] for a in ways.values()]
    first = {"before": steps["masked"], "after": steps["scaled"], "renormalised": steps["scaled"]}
    second = {"before": steps["weights"], "after": plain, "renormalised": plain}
    names = ("query", "key", "value", "scores", "scaled", "mask", "masked")
    numbers = {name: one(steps[name], *steps.axes(name)) for name in names}
    all_three = ("way", "rate", "key")
    numbers |= {
        "weights": each_of("way", ways, "query", "key"),
        "before softmax": each_of("way", first, "query", "key"),
        "softmax": each_of("way", second, "query", "key"),
        "ways": one(jnp.stack(list(ways.values())), "way", "query", "key"),
        "kept": Numbers(("query", "key"), ("rate", "key"), kept),
        "dropped": Numbers(("query", "key"), all_three, dropped),
        "sums": Numbers(("token", "sum"), all_three, sums),
        "context": Numbers(("token", "feature"), all_three, context),
        "differences": one(jnp.array(differences), "way", "way"),
    }
    return Section(
        "causal",
        "3 Causal attention and dropout",
        [
            "A model that is to write the next token must not see it. So every key after the query is hidden: its "
            "score becomes −∞ before the softmax, which then gives it 0. Zeroing weights after the softmax leaves rows "
            "that no longer sum to 1; divided by the sum of what is left, they are those of the first way again.",
            "Dropout, in training only, sets weights to 0 by chance and multiplies the survivors by 1 / (1 − rate), so "
            "that a row still sums to 1 on average, though hardly a single one does. The same random key drops the "
            "same cells: choose a rate above 0, and watch.",
        ],
        [
            Choice(
                "way",
                "Mask",
                [
                    ("before", "before the softmax"),
                    ("after", "after it"),
                    ("renormalised", "after it, and renormalised"),
                ],
                "before",
            ),
            Choice("rate", "Dropout rate", [(str(rate), str(rate)) for rate in RATES], "0.0"),
            Choice("key", "Random key of dropout", [(str(key), str(key)) for key in KEYS], "0"),
        ],
        numbers,
        "dropped",
        [
            Step("score", "the query times each key", "scores"),
            Step("scale", "divided by the root of the width", "scaled"),
            Step("mask", "−∞ where a key comes after the query, if the mask comes first", "before softmax"),
            Step("softmax", "as shares that sum to 1", "softmax"),
            Step("weights", "later keys are 0 now, wherever the mask comes, and renormalised if so chosen", "weights"),
            Step("dropout", "some dropped, the others grown", "dropped"),
            Step("context", "the values, averaged", "context"),
        ],
        [
            Figure("Queries", "query", "values"),
            Figure("Keys", "key", "values"),
            Figure("Scaled scores, hidden ones −∞", "masked", "scores", "mask"),
            Figure("Weights", "ways", "weights", "mask"),
            Figure("Largest difference between the three", "differences", "plain"),
            Figure("Cells that dropout keeps", "kept", "weights"),
            Figure("Weights after dropout", "dropped", "weights", "mask"),
            Figure("Sums of these rows", "sums", "plain"),
            Figure("Values", "value", "values"),
            Figure("Context vectors", "context", "values"),
        ],
        "import jax\n"
        "from jaxattn import CausalAttention\n"
        f"attention = CausalAttention(features={steps['query'].shape[-1]}, dropout_rate=0.5)\n"
        "context = attention.apply(variables, x, deterministic=False, dropout_key=jax.random.key(0))",
        of_tokens(story) | {"way": ["masked before", "masked after", "renormalised"], "sum": ["sum"]},
    )
