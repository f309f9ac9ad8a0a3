"""Section 1: self-attention without trainable weights."""

from jaxattn.functional import context_vectors
from jaxattn.guide.section import Figure, Numbers, Section, Step, Switch, by_switch, constant, token_labels
from jaxattn.guide.story import Story
from jaxattn.guide.trace import trace
from jaxattn.stages import SimpleSelfAttention

PARAGRAPHS = [
    "Each token compares itself with every token, itself included: the dot product of their two vectors is the score. "
    "Softmax turns a token's scores into weights, positive numbers that sum to 1. The token's context vector is the "
    "average of all vectors, weighted by these weights.",
    "Dividing the scores by their sum also makes them sum to 1, but only softmax keeps the weights positive when some "
    "scores are negative, and it favours the largest score.",
]
SWITCHES = [
    Switch("way", "From scores to weights", [("softmax", "softmax"), ("divide", "divide by the sum")], "softmax")
]
STEPS = [
    Step("products", "each key's vector times the query's, element by element", "products"),
    Step("score", "the sum of the products: one score for each key", "scores"),
    Step("weights", "the scores, normalized to sum to 1", "weights"),
    Step("weighted vectors", "each key's vector times its weight", "weighted vectors"),
    Step("context", "their sum: the context vector", "context"),
]
FIGURES = [
    Figure("Input vectors", "inputs", "values"),
    Figure("Scores", "scores", "scores"),
    Figure("Weights", "weights", "weights"),
    Figure("Context vectors", "context", "values"),
]
CODE = """\
from jaxattn import SimpleSelfAttention
attention = SimpleSelfAttention()
context, weights = attention.apply({}, x, return_weights=True)"""


def simple_section(story: Story) -> Section:
    """Compute the section."""
    title, numbers = "1 Simplified self-attention", _numbers(story)
    labels = token_labels(story)
    return Section("simple", title, PARAGRAPHS, SWITCHES, numbers, "weights", STEPS, FIGURES, CODE, labels)


def _numbers(story: Story) -> dict[str, Numbers]:
    x = story.inputs
    steps = trace(SimpleSelfAttention(), {}, x)
    scores = steps["scores"]
    ways = {"softmax": steps["weights"], "divide": scores / scores.sum(-1, keepdims=True)}
    weighted = {way: weights[..., None] * x[None] for way, weights in ways.items()}  # (T, S, d)
    context = {way: context_vectors(weights, x) for way, weights in ways.items()}
    return {
        "inputs": constant(x, "token", "feature"),
        "products": constant(x[:, None] * x[None], "query", "key", "feature"),
        "scores": constant(scores, "query", "key"),
        "weights": by_switch("way", ways, "query", "key"),
        "weighted vectors": by_switch("way", weighted, "query", "key", "feature"),
        "context": by_switch("way", context, "token", "feature"),
    }
