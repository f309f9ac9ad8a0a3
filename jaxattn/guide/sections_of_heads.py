"""The page's sections with several heads: stage 4, and those of a trained model."""

import jax.numpy as jnp

from jaxattn.guide.section import Choice, Figure, Section, Step, each_of, of_tokens, one
from jaxattn.guide.story import Story
from jaxattn.guide.trace import trace
from jaxattn.stages import MultiHeadAttention, MultiHeadAttentionWrapper, parallel_from_stacked


def heads_section(story: Story) -> Section:
    """Stage 4: stacked heads, the same in parallel, and a layer with an output projection."""
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
    numbers = {name: each_of("way", each, *axes[name]) for name, each in arrays.items()}
    compared = {"queries": "query", "keys": "key", "values": "value", "weights": "weights", "context": "context"}
    largest = [[jnp.abs(stacked[name] - parallel[name]).max()] for name in compared.values()]
    out = story.parallel["params"]["out"]
    numbers |= {
        "mask": one(stacked["mask"], "query", "key"),
        "differences": one(jnp.array(largest), "array", "largest"),
        "W out": one(out["kernel"], "input", "feature"),
        "bias": one(out["bias"][None], "bias", "feature"),
        "projected output": one(projected["output"], "token", "feature"),
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
        of_tokens(story)
        | {
            "joined": [f"{head}: {number}" for head in range(H) for number in range(D)],
            "array": list(compared),
            "largest": ["largest difference"],
            "bias": ["bias"],
        },
    )


def trained_section(story: Story) -> Section:
    """All heads of a trained model, and what it takes to come next."""
    H, _, D = story.layers[0]["context"].shape
    layer, head = story.best
    numbers = {
        name: each_of(
            "layer", {number: steps[name] for number, steps in enumerate(story.layers)}, *story.layers[0].axes(name)
        )
        for name in ("scores", "scaled", "masked", "weights", "context")
    }
    numbers["mask"] = one(story.layers[0]["mask"], "query", "key")
    numbers["next"] = one(story.following, "token", "next")
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
        of_tokens(story) | {"next": list(story.words)},
    )
