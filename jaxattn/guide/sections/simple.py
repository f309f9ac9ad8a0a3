"""Section 1: self-attention without trainable weights."""

from jaxattn.functional import context_vectors
from jaxattn.guide.section import Equation, Numbers, Section, Switch, by_switch, constant
from jaxattn.guide.story import Story
from jaxattn.guide.trace import trace
from jaxattn.stages import SimpleSelfAttention

PARAGRAPHS = [
    "Each word stands for a vector, here of {d} numbers ({note}); a model learns its vectors, and they are hundreds of "
    "numbers long. Each word compares itself with every word, itself included: the dot product of their two vectors is "
    "the score. It is large for vectors that point the same way.",
    "Softmax turns a word's scores into weights, positive numbers that sum to 1. The word's context vector is the "
    "average of all vectors, weighted by these weights.",
    "Dividing the scores by their sum also makes them sum to 1, but only softmax keeps the weights positive when some "
    "scores are negative, and it favours the largest score.",
]
SWITCHES = [
    Switch("way", "From scores to weights", [("softmax", "softmax"), ("divide", "divide by the sum")], "softmax")
]
EQUATIONS = [
    Equation(
        "Scores",
        "Compare every word with every word: the products of their elements, summed.",
        "einsum",
        ["inputs", "inputs"],
        "scores",
        "rk,ck->rc",
    ),
    Equation(
        "Weights",
        "Softmax of each row: exponentials, divided by their sum. Each row sums to 1.",
        "softmax",
        ["scores"],
        "weights",
        when={"way": ("softmax",)},
    ),
    Equation(
        "Weights",
        "Each score divided by its row's sum.",
        "normalize",
        ["scores"],
        "weights",
        when={"way": ("divide",)},
    ),
    Equation(
        "Context",
        "Average all vectors by each row of the weights.",
        "einsum",
        ["weights", "inputs"],
        "context",
        "rk,kc->rc",
    ),
]
CODE = """\
from jaxattn import SimpleSelfAttention
attention = SimpleSelfAttention()
context, weights = attention.apply({}, x, return_weights=True)"""


def simple_section(story: Story) -> Section:
    """Compute the section."""
    return Section(
        id="simple",
        title="1 Simplified self-attention",
        tokens=story.tokens,
        query=story.query,
        paragraphs=[text.format(d=story.inputs.shape[-1], note=story.input_note) for text in PARAGRAPHS],
        numbers=_numbers(story),
        equations=EQUATIONS,
        code=CODE,
        arcs="weights",
        switches=SWITCHES,
    )


def _numbers(story: Story) -> dict[str, Numbers]:
    x = story.inputs
    steps = trace(SimpleSelfAttention(), {}, x)
    scores = steps["scores"]
    ways = {"softmax": steps["weights"], "divide": scores / scores.sum(-1, keepdims=True)}
    context = {way: context_vectors(weights, x) for way, weights in ways.items()}
    return {
        "inputs": constant(x, "token", "feature", symbol="X", note=story.input_note),
        "scores": constant(scores, "query", "key", symbol="S", kind="scores"),
        "weights": by_switch("way", ways, "query", "key", symbol="A", kind="weights"),
        "context": by_switch("way", context, "token", "feature", symbol="Z"),
    }
