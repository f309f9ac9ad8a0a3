"""After the book: windows, which bound how far back a token attends."""

import jax.numpy as jnp
import numpy as np

from jaxattn.functional import attention_weights, context_vectors
from jaxattn.guide.section import Cell, Equation, Numbers, Section, Switch, Table, by_switch
from jaxattn.guide.sections.causal import CONTEXT, MASK, SCALE, causal_numbers
from jaxattn.guide.sections.trainable import PROJECTIONS, SCORES
from jaxattn.guide.story import Story
from jaxattn.guide.trace import Trace, trace
from jaxattn.masks import Causal, SlidingWindow
from jaxattn.stages import CausalAttention

SIZES, LAYERS = (1, 2, 3), (1, 2, 4)
LENGTHS, WINDOW = (512, 1024, 2048), 256

PARAGRAPHS = [
    "With the causal mask, a text twice as long has four times as many scores. A sliding window lets each token attend "
    "to itself and to the few tokens before it: then the number of scores grows only as the text does, and a cache "
    "needs no more than the window.",
    "Farther words are not lost. In the next layer, each token in the window has itself gathered from its own window: "
    "with each layer the reach grows by the window less one.",
]
SWITCHES = [Switch("size", "Window", [*((str(size), str(size)) for size in SIZES), ("all", "all earlier words")], "2")]
EQUATIONS = [
    *PROJECTIONS,
    SCORES,
    SCALE,
    MASK._replace(text="Set the scores of later keys, and of keys before the window, to −∞."),
    Equation("Weights", "Softmax of each row: masked keys get weight 0.", "softmax", ["masked"], "weights"),
    CONTEXT,
]
CODE = """\
from jaxattn import dot_product_attention, masks
context = dot_product_attention(query, key, value, masks.SlidingWindow(2))"""


def windows_section(story: Story) -> Section:
    """Compute the section."""
    steps = trace(CausalAttention(2), story.causal, story.inputs)
    return Section(
        id="windows",
        title="After the book: windows",
        tokens=story.tokens,
        query=len(story.tokens) - 1,
        paragraphs=PARAGRAPHS,
        numbers=causal_numbers(story, steps) | _by_size(steps),
        equations=EQUATIONS,
        code=CODE,
        arcs="weights",
        switches=SWITCHES,
        tables=[_reach(), _cost()],
        opened=5,
    )


def _by_size(steps: Trace) -> dict[str, Numbers]:
    T, d = steps["queries"].shape
    patterns = {size: SlidingWindow(size) for size in SIZES} | {"all": Causal()}
    masks = {size: pattern.array(T, T) for size, pattern in patterns.items()}
    masked = {size: jnp.where(mask, steps["scaled"], -jnp.inf) for size, mask in masks.items()}
    weights = {size: attention_weights(steps["scores"], each, scale=d**-0.5) for size, each in patterns.items()}
    context = {size: context_vectors(each, steps["values"]) for size, each in weights.items()}
    note = "1 where the key is in the query's window, 0 elsewhere"
    return {
        "mask": by_switch("size", masks, "query", "key", symbol="M", kind="plain", note=note),
        "masked": by_switch("size", masked, "query", "key", symbol="S″", kind="scores"),
        "weights": by_switch("size", weights, "query", "key", symbol="A", kind="weights"),
        "context": by_switch("size", context, "token", "feature", symbol="Z"),
    }


def _reach() -> Table:
    """Count the tokens that reach the last of 24, by multiplying the layers' masks."""
    rows = []
    for size in SIZES:
        step = np.asarray(SlidingWindow(size).array(24, 24)).astype(int)
        cells = []
        for layers in LAYERS:
            reached = int((np.linalg.matrix_power(step, layers)[-1] > 0).sum())
            cells.append(Cell(str(reached), f"{layers} · ({size} − 1) + 1", "layers · (window − 1) + the word itself"))
        rows.append((str(size), cells))
    columns = ["window", *(f"{layers} layer{'s' * (layers > 1)}" for layers in LAYERS)]
    return Table("How many of 24 words reach the last word", columns, rows)


def _cost() -> Table:
    """Count the scores that are not masked."""
    T, rows = max(LENGTHS), []
    masks = [np.asarray(mask.array(T, T)) for mask in (Causal(), SlidingWindow(WINDOW))]
    for length in LENGTHS:
        causal, window = (int(mask[:length, :length].sum()) for mask in masks)
        start = f"{WINDOW} · {WINDOW + 1} / 2"
        cells = [
            Cell(f"{causal:,}", f"{length} · {length + 1} / 2", "the first token has 1 key, the last one all"),
            Cell(f"{window:,}", f"{start} + ({length} − {WINDOW}) · {WINDOW}", f"{WINDOW} keys from token {WINDOW} on"),
        ]
        rows.append((f"{length:,}", cells))
    return Table("Scores of a text", ["tokens", "causal", f"window of {WINDOW}"], rows)
