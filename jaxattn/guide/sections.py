"""The page's sections: every number that they show, for every position of their switches, computed by the library."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.functional import attention_weights, context_vectors, dropout, renormalized_weights
from jaxattn.guide.story import Story
from jaxattn.guide.trace import trace
from jaxattn.stages import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention,
    SimpleSelfAttention,
    parallel_from_stacked,
)

TEMPERATURES, RATES, KEYS = (0.5, 1.0, 2.0), (0.0, 0.1, 0.2, 0.5), (0, 1, 2)


class Choice(NamedTuple):
    """A switch: its name, its label, pairs of a value and what it is called, and the value that it has at first."""

    name: str
    label: str
    options: list[tuple[str, str]]
    first: str


class Numbers(NamedTuple):
    """One array for each position of the switches in `depends`; `axes` names their axes."""

    axes: tuple[str, ...]
    depends: tuple[str, ...]
    values: dict[str, np.ndarray]


class Figure(NamedTuple):
    """A table of an array, or of three axes a table for each entry of the first.

    `kind` is "weights", "scores", "values", or "plain" without colours; `hidden` an array that says which cells show.
    """

    title: str
    array: str
    kind: str
    hidden: str | None = None


class Step(NamedTuple):
    """What happens to the chosen query's row: the array's row, or of three axes its table."""

    name: str
    text: str
    array: str


class Section(NamedTuple):
    """One section of the page; `labels` names the entries of an axis, where they are more than numbers."""

    id: str
    title: str
    paragraphs: list[str]
    choices: list[Choice]
    numbers: dict[str, Numbers]
    arcs: str
    steps: list[Step]
    figures: list[Figure]
    code: str
    labels: dict[str, list[str]]


def make_sections(story: Story) -> list[Section]:
    """Compute all sections of the page.

    Example:
        >>> from jaxattn.guide.sections import make_sections
        >>> from jaxattn.guide.story import book_story
        >>> [section.id for section in make_sections(book_story())]
        ['simple', 'trainable', 'causal', 'heads']
    """
    sections = [_simple(story), _trainable(story), _causal(story), _heads(story)]
    return [_trained(story), *sections] if story.layers else sections


def position(**switches: Any) -> str:
    """Name a position of switches."""
    return "&".join(f"{name}={value}" for name, value in switches.items())


def _one(array: Any, *axes: str) -> Numbers:
    return Numbers(axes, (), {"": np.asarray(array)})


def _of_tokens(story: Story) -> dict[str, list[str]]:
    return dict.fromkeys(("query", "key", "token"), story.tokens)


def _simple(story: Story) -> Section:
    steps = trace(SimpleSelfAttention(), {}, story.inputs)
    x, scores = story.inputs, steps["scores"]
    ways = {"softmax": steps["weights"], "divide": scores / scores.sum(-1, keepdims=True)}
    numbers = {
        "inputs": _one(x, "token", "feature"),
        "products": _one(x[:, None] * x[None], "query", "key", "feature"),
        "scores": _one(scores, "query", "key"),
        "weights": Numbers(("query", "key"), ("way",), {position(way=k): np.asarray(w) for k, w in ways.items()}),
        "shares": Numbers(
            ("query", "key", "feature"),
            ("way",),
            {position(way=k): np.asarray(w[..., None] * x[None]) for k, w in ways.items()},
        ),
        "context": Numbers(
            ("token", "feature"),
            ("way",),
            {position(way=k): np.asarray(context_vectors(w, x)) for k, w in ways.items()},
        ),
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
        _of_tokens(story),
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
    numbers = {name: _one(steps[name], *steps.axes(name)) for name in ("inputs", "query", "key", "value", "scores")}
    numbers |= {
        "scaled": Numbers(("query", "key"), both, scaled),
        "weights": Numbers(("query", "key"), both, weights),
        "context": Numbers(("token", "feature"), both, context),
    }
    params = story.trainable["params"]
    numbers |= {f"W {name}": _one(params[name]["kernel"], "input", "feature") for name in ("query", "key", "value")}
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
        _of_tokens(story),
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
    numbers = {name: _one(steps[name], *steps.axes(name)) for name in names}
    all_three = ("way", "rate", "key")
    numbers |= {
        "weights": Numbers(("query", "key"), ("way",), {position(way=k): np.asarray(w) for k, w in ways.items()}),
        **{
            name: Numbers(("query", "key"), ("way",), {position(way=k): np.asarray(a) for k, a in arrays.items()})
            for name, arrays in (("before softmax", first), ("softmax", second))
        },
        "ways": _one(jnp.stack(list(ways.values())), "way", "query", "key"),
        "kept": Numbers(("query", "key"), ("rate", "key"), kept),
        "dropped": Numbers(("query", "key"), all_three, dropped),
        "sums": Numbers(("token", "sum"), all_three, sums),
        "context": Numbers(("token", "feature"), all_three, context),
        "differences": _one(jnp.array(differences), "way", "way"),
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
        _of_tokens(story) | {"way": ["masked before", "masked after", "renormalised"], "sum": ["sum"]},
    )


def _heads(story: Story) -> Section:
    params = story.stacked["params"]
    H, D = len(params), params["heads_0"]["value"]["kernel"].shape[-1]
    stacked = trace(MultiHeadAttentionWrapper(H, D), story.stacked, story.inputs)
    side_by_side = {"params": parallel_from_stacked(params)}
    parallel = trace(MultiHeadAttention(H, H * D), side_by_side, story.inputs)
    features = story.parallel["params"]["out"]["kernel"].shape[0]
    projected = trace(MultiHeadAttention(H, features), story.parallel, story.inputs)
    ways = {"parallel": parallel, "stacked": stacked, "projected": projected}
    names = ("query", "key", "value", "scores", "scaled", "masked", "weights", "context", "concatenation")
    arrays = {name: {way: steps[name] for way, steps in ways.items()} for name in names}
    # (H, T, D) -> (T, H * D), as they were before they were cut
    arrays["joined query"] = {way: jnp.hstack(list(steps["query"])) for way, steps in ways.items()}
    # Without a projection, what is side by side is what comes out.
    arrays["output"] = {way: steps.arrays.get("output", steps["concatenation"]) for way, steps in ways.items()}
    axes = {name: stacked.axes(name) for name in names} | dict.fromkeys(
        ("joined query", "concatenation", "output"), ("token", "joined")
    )
    numbers = {
        name: Numbers(axes[name], ("way",), {position(way=way): np.asarray(array) for way, array in each.items()})
        for name, each in arrays.items()
    }
    compared = {"queries": "query", "keys": "key", "values": "value", "weights": "weights", "context": "context"}
    largest = [[jnp.abs(stacked[name] - parallel[name]).max()] for name in compared.values()]
    out = story.parallel["params"]["out"]
    numbers |= {
        "mask": _one(stacked["mask"], "query", "key"),
        "differences": _one(jnp.array(largest), "array", "largest"),
        "W out": _one(out["kernel"], "input", "feature"),
        "bias": _one(out["bias"][None], "bias", "feature"),
        "projected output": _one(projected["output"], "token", "feature"),
    }
    T, wide = len(story.tokens), H * D
    return Section(
        "heads",
        "4 Several heads",
        [
            "One head averages in one way. Several heads, each with matrices of its own, look for several things at "
            "once. They can be run one after the other and set side by side, or all at once: their matrices stand "
            "side by side in one, and its result is cut into heads. The numbers are the same.",
            f"The cut, for {T} tokens and {H} heads of width {D}: x times the matrix has {T} tokens of {wide} numbers. "
            f"Reshaped, it is (tokens {T}, heads {H}, width {D}); transposed, (heads {H}, tokens {T}, width {D}), a "
            f"head in front. The way back: transposed, (tokens {T}, heads {H}, width {D}); reshaped, {T} tokens of "
            f"{wide} numbers, the heads' context vectors side by side. Reshaping alone, without the transpose, would "
            "mix tokens with heads.",
            "A layer for use has an output projection at its end, which mixes what the heads found. The one here has "
            f"{H} heads and {features} features in total, {features // H} a head: switch to it, and all follows it.",
        ],
        [
            Choice(
                "way",
                "Heads",
                [
                    ("parallel", "all at once"),
                    ("stacked", "one after the other"),
                    ("projected", "all at once, with an output projection"),
                ],
                "parallel",
            ),
            Choice("head", "Head", [(str(head), str(head)) for head in range(H)], "0"),
        ],
        numbers,
        "weights",
        [
            Step("score", "the head's query times each of its keys", "scores"),
            Step("scale", "divided by the root of the head's width", "scaled"),
            Step("mask", "−∞ where a key comes after the query", "masked"),
            Step("softmax", "as shares that sum to 1", "weights"),
            Step("context", "the head's values, averaged", "context"),
            Step("concatenate", "the heads' context vectors side by side", "concatenation"),
            Step("output", "these, or with an output projection, these times W out plus its bias", "output"),
        ],
        [
            Figure("Queries, all heads", "joined query", "values"),
            Figure("Queries", "query", "values"),
            Figure("Keys", "key", "values"),
            Figure("Values", "value", "values"),
            Figure("Weights", "weights", "weights", "mask"),
            Figure("Context", "context", "values"),
            Figure("Side by side", "concatenation", "values"),
            Figure("Between the first two ways", "differences", "plain"),
            Figure("W out", "W out", "values"),
            Figure("Its bias", "bias", "values"),
            Figure("Output with projection", "projected output", "values"),
        ],
        "from jaxattn import MultiHeadAttention, MultiHeadAttentionWrapper\n"
        f"heads = MultiHeadAttentionWrapper(num_heads={H}, features={D})  # one after the other\n"
        f"layer = MultiHeadAttention(num_heads={H}, features={features})  # all at once, with an output projection\n"
        "output, weights = layer.apply(variables, x, return_weights=True)",
        _of_tokens(story)
        | {
            "joined": [f"{head}: {number}" for head in range(H) for number in range(D)],
            "array": list(compared),
            "largest": ["largest difference"],
            "bias": ["bias"],
        },
    )


def _trained(story: Story) -> Section:
    H, _, D = story.layers[0]["context"].shape
    layer, head = story.best
    numbers = {
        name: Numbers(
            story.layers[0].axes(name),
            ("layer",),
            {position(layer=number): np.asarray(steps[name]) for number, steps in enumerate(story.layers)},
        )
        for name in ("scores", "scaled", "masked", "weights", "context")
    }
    numbers["mask"] = _one(story.layers[0]["mask"], "query", "key")
    numbers["next"] = _one(story.following, "token", "next")
    return Section(
        "trained",
        "A trained model",
        [
            f"These are the numbers of a model that has learned: {story.run}, {len(story.layers)} layers of {H} heads. "
            "Choose a token, and see from where each head fetches what it needs; the last table says how likely the "
            "model takes some words to come after each token.",
            story.found or "How much an arc means depends on how much the model has learned.",
        ],
        [
            Choice("layer", "Layer", [(str(number), str(number)) for number in range(len(story.layers))], str(layer)),
            Choice("head", "Head", [(str(number), str(number)) for number in range(H)], str(head)),
        ],
        numbers,
        "weights",
        [
            Step("score", "the query times each key", "scores"),
            Step("scale", f"divided by the root of the head's width, {D}", "scaled"),
            Step("mask", "−∞ where a key comes after the query", "masked"),
            Step("softmax", "as shares that sum to 1", "weights"),
            Step("context", "the head's values, averaged", "context"),
        ],
        [
            Figure("Weights", "weights", "weights", "mask"),
            Figure("How likely a word is to come next", "next", "weights"),
        ],
        "from jaxattn.training.saving import load_model\n"
        f"model, params = load_model({story.run!r})\n"
        'logits, kept = model.apply({"params": params}, tokens, mutable=["intermediates"])',
        _of_tokens(story) | {"next": list(story.words)},
    )
