"""The sections of a GPT-2: all its heads on a text, and on a repeated random sequence, which finds induction heads."""

import numpy as np

from jaxattn.guide.gpt2 import GPT2Heads
from jaxattn.guide.section import Cell, Numbers, Section, Switch, Table, by_switch, short
from jaxattn.guide.sections.trained import next_words_table
from jaxattn.guide.story import Story

NUM_HEADS = 10  # rows of the table of induction scores
NOTE = "computed by the model"
TEXT = [
    "These are the attention weights of {run}: {layers} layers of {heads} heads. Choose a layer, a head and a word.",
    "Many heads of a GPT-2 attend mostly to the first token, whatever it is, where they find nothing else. What a "
    "single head does on one sentence is no proof of what it does on others.",
]
REPEATED = [
    "A random sequence of tokens, written twice. Nothing can predict its first half. In its second half each token has "
    "occurred before, and what followed then follows again: an induction head attends to that token, the one after the "
    "previous occurrence (Olsson et al. 2022).",
    "The score is the mean weight that a head gives to that token, over the second half of {number} random sequences "
    "of {tokens} tokens. A head that attends to all tokens alike would get {chance:.2f}. Head {head} of layer {layer} "
    "has the largest score, {score:.2f}.",
]
CODE = """\
from jaxattn import load_gpt2
model, params = load_gpt2({run!r})
logits, state = model.apply({{"params": params}}, tokens, mutable=["intermediates"])
weights = state["intermediates"]["block_0"]["attention"]["weights"][0]  # of layer 0: (H, T, T)"""


def gpt2_sections(story: Story, heads: GPT2Heads) -> list[Section]:
    """Show the text, then the repeated sequence, both at the head with the largest induction score."""
    layers, H = heads.induction.shape
    layer, head = heads.best_head
    n, number = heads.measured
    facts = {"run": story.run, "layers": layers, "heads": H, "layer": layer, "head": head, "tokens": n}
    facts |= {"number": number, "score": heads.induction.max(), "chance": np.mean(1 / np.arange(n + 1, 2 * n + 1))}
    text = _section("gpt2", f"The heads of {story.run}", heads.tokens, heads.weights, heads.best_head, TEXT, facts)
    repeated = _section(
        "induction", "Induction heads", heads.repeated_tokens, heads.repeated_weights, heads.best_head, REPEATED, facts
    )
    return [text._replace(tables=[next_words_table(story)]), repeated._replace(tables=[_scores(heads)])]


def _section(
    name: str, title: str, tokens: list[str], weights: np.ndarray, best: tuple[int, int], texts: list[str], facts: dict
) -> Section:
    layers, H = weights.shape[:2]
    numbers: dict[str, Numbers] = {
        "weights": by_switch(
            "layer", dict(enumerate(weights)), "head", "query", "key", symbol="A", kind="weights", note=NOTE
        )
    }
    return Section(
        id=name,
        title=title,
        tokens=tokens,
        query=len(tokens) - 1,
        paragraphs=[text.format(**facts) for text in texts],
        numbers=numbers,
        equations=[],
        code=CODE.format(run=facts["run"]),
        arcs="weights",
        switches=[
            Switch("layer", "Layer", [(str(layer), str(layer)) for layer in range(layers)], str(best[0])),
            Switch("head", "Head", [(str(head), str(head)) for head in range(H)], str(best[1])),
        ],
    )


def _scores(heads: GPT2Heads) -> Table:
    """List the heads with the largest scores."""
    note = "the mean weight of the token after the previous occurrence"
    order = np.argsort(-heads.induction, axis=None, kind="stable")[:NUM_HEADS]
    rows = []
    for layer, head in zip(*np.unravel_index(order, heads.induction.shape), strict=True):
        rows.append((f"layer {layer}, head {head}", [Cell(short(heads.induction[layer, head]), note=note)]))
    return Table("The largest induction scores", ["head", "score"], rows)
