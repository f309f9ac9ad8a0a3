"""Section 4: several heads, one by one and in parallel, and a layer with an output projection."""

import jax.numpy as jnp

from jaxattn.guide.section import Figure, Numbers, Section, Step, Switch, by_switch, constant, token_labels
from jaxattn.guide.story import Story
from jaxattn.guide.trace import Trace, trace
from jaxattn.stages import MultiHeadAttention, MultiHeadAttentionWrapper, parallel_from_stacked

STEPS = [
    Step("score", "the head's query times each of its keys", "scores"),
    Step("scale", "divided by the square root of the head's width", "scaled"),
    Step("mask", "−∞ for keys after the query", "masked"),
    Step("softmax", "normalized to positive weights that sum to 1", "weights"),
    Step("context", "the average of the head's values by these weights", "context"),
    Step("concatenate", "the heads' context vectors side by side", "concatenation"),
    Step("output", "the same, or with an output projection, the same times W out plus a bias", "output"),
]
FIGURES = [
    Figure("Queries, all heads", "joined queries", "values"),
    Figure("Queries", "queries", "values"),
    Figure("Keys", "keys", "values"),
    Figure("Values", "values", "values"),
    Figure("Weights", "weights", "weights", "mask"),
    Figure("Context", "context", "values"),
    Figure("Side by side", "concatenation", "values"),
    Figure("Largest difference, in parallel and one by one", "differences", "plain"),
    Figure("W out", "W out", "values"),
    Figure("Bias of the output projection", "bias", "values"),
    Figure("Output with projection", "projected output", "values"),
]
CODE = """\
from jaxattn import MultiHeadAttention, MultiHeadAttentionWrapper
heads = MultiHeadAttentionWrapper(num_heads={H}, features={D})  # one by one; features per head
layer = MultiHeadAttention(num_heads={H}, features={features})  # in parallel, with an output projection
output, weights = layer.apply(variables, x, return_weights=True)"""


def heads_section(story: Story) -> Section:
    """Compute the section."""
    params = story.stacked["params"]
    H, D = len(params), params["heads_0"]["value"]["kernel"].shape[-1]
    features = story.parallel["params"]["out"]["kernel"].shape[0]
    traces = {
        "parallel": trace(MultiHeadAttention(H, H * D), {"params": parallel_from_stacked(params)}, story.inputs),
        "stacked": trace(MultiHeadAttentionWrapper(H, D), story.stacked, story.inputs),
        "projected": trace(MultiHeadAttention(H, features), story.parallel, story.inputs),
    }
    numbers = _by_way(traces) | _constants(story, traces)
    labels = {
        "joined": [f"{head}: {number}" for head in range(H) for number in range(D)],
        "array": ["queries", "keys", "values", "weights", "context"],
        "largest": ["largest difference"],
        "bias": ["bias"],
    }
    paragraphs, labels = _paragraphs(len(story.tokens), H, D, features), token_labels(story) | labels
    code = CODE.format(H=H, D=D, features=features)
    title, switches = "4 Several heads", _switches(H)
    return Section("heads", title, paragraphs, switches, numbers, "weights", STEPS, FIGURES, code, labels)


def _paragraphs(T: int, H: int, D: int, features: int) -> list[str]:
    joined = H * D
    return [
        "One head averages in one way. Several heads, each with its own matrices, can look for several things at once. "
        "They can be computed one by one and concatenated, or in parallel: their matrices are put side by side into "
        "one, and the result is split into heads. The numbers are the same.",
        f"The split, for {T} tokens and {H} heads of width {D}: x times the joined matrix has {T} tokens of {joined} "
        f"numbers. Reshaped, it is (tokens {T}, heads {H}, width {D}); transposed, (heads {H}, tokens {T}, width {D}). "
        f"The way back: transposed, (tokens {T}, heads {H}, width {D}); reshaped, {T} tokens of {joined} numbers, the "
        "heads' context vectors side by side. Reshaping without transposing would mix tokens with heads.",
        "Layers in real models end with an output projection, which combines what the heads found. The one here has "
        f"{H} heads and {features} features in total, {features // H} per head: choose it, and all tables follow.",
    ]


def _switches(H: int) -> list[Switch]:
    ways = [
        ("parallel", "in parallel"),
        ("stacked", "one by one"),
        ("projected", "in parallel, with an output projection"),
    ]
    return [
        Switch("way", "Heads", ways, "parallel"),
        Switch("head", "Head", [(str(head), str(head)) for head in range(H)], "0"),
    ]


def _by_way(traces: dict[str, Trace]) -> dict[str, Numbers]:
    names = ("queries", "keys", "values", "scores", "scaled", "masked", "weights", "context", "concatenation", "output")
    axes = {name: traces["projected"].axes(name) for name in names}
    axes |= dict.fromkeys(("concatenation", "output"), ("token", "joined"))
    # (H, T, D) -> (T, H * D), as it was before the split
    queries = {way: jnp.hstack(list(steps["queries"])) for way, steps in traces.items()}
    return {
        name: by_switch("way", {way: steps[name] for way, steps in traces.items()}, *axes[name]) for name in names
    } | {"joined queries": by_switch("way", queries, "token", "joined")}


def _constants(story: Story, traces: dict[str, Trace]) -> dict[str, Numbers]:
    out, (parallel, stacked, projected) = story.parallel["params"]["out"], traces.values()
    compared = ("queries", "keys", "values", "weights", "context")
    differences = [[jnp.abs(stacked[name] - parallel[name]).max()] for name in compared]
    return {
        "mask": constant(stacked["mask"], "query", "key"),
        "differences": constant(jnp.array(differences), "array", "largest"),
        "W out": constant(out["kernel"], "input", "feature"),
        "bias": constant(out["bias"][None], "bias", "feature"),
        "projected output": constant(projected["output"], "token", "feature"),
    }
