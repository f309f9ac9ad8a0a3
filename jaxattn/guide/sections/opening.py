"""The first and the last section: whom does "him" mean? The heads of a trained model, shipped with the package."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn.functional import attention_scores, attention_weights, context_vectors
from jaxattn.guide.section import Cell, Section, Table, constant
from jaxattn.guide.sections.trained import trained_section
from jaxattn.guide.shipped import Shipped, ShippedSentence, load_shipped
from jaxattn.guide.story import Story
from jaxattn.guide.trace import Trace
from jaxattn.masks import Causal

QUESTION = [
    "Whom did the fox bite? You know at once: “him” is the dog. How does a model find out, which has nothing but "
    "numbers?",
    "The arc below is the answer of a small model, trained on sentences like this one: at “him”, one of its heads "
    "attends to “{noun}”, with a weight of {weight:.3f} out of 1. What this head passes on at “him” is an average of "
    "one vector for each word, and by these weights nearly all of it is the dog's.",
    "This page shows how such weights are computed, in the four steps of the book, with small numbers that you can "
    "follow by hand. At the end it comes back to this sentence.",
]
ANSWER = [
    "Here is the sentence of the beginning again, in each head of the model, {layers} layers of {heads}. The steps are "
    "those of section 4; only the vectors are wider, {width} elements in each head, so the steps shown here begin with "
    "their dot products.",
    "Over {sentences:,} sentences whose pair of noun and verb the model never saw, head {head} of layer {layer} gives "
    "the noun that is meant {attention:.2f} of its attention at the pronoun. In {accuracy:.1%} of them the model "
    "prefers the right one of “him” and “her”; the previous word alone would give {bigram:.1%}. What the other heads "
    "do was not measured.",
]
CODE = """\
from jaxattn.guide.shipped import load_shipped
from jaxattn import attention_scores, attention_weights, masks
sentence = load_shipped().sentences[0]
scores = attention_scores(sentence.queries, sentence.keys)
weights = attention_weights(scores, masks.Causal(), scale=32**-0.5)  # (layers, heads, queries, keys)"""
HELD_OUT = 2000  # sentences of the report


def opening_section() -> Section:
    """Show one arc, from the pronoun to its noun."""
    shipped = load_shipped()
    sentence, (layer, head) = shipped.sentences[0], shipped.report.best_head
    weights = _weights(sentence)[layer, head]
    weight = float(weights[-1, sentence.noun])
    return Section(
        id="opening",
        title=f"Whom does “{sentence.tokens[-1]}” mean?",
        tokens=sentence.tokens,
        query=len(sentence.tokens) - 1,
        paragraphs=[text.format(noun=sentence.tokens[sentence.noun], weight=weight) for text in QUESTION],
        numbers={
            "weights": constant(
                weights, "query", "key", symbol="A", kind="weights", note="computed by the trained model"
            )
        },
        equations=[],
        arcs="weights",
    )


def closing_section(story: Story) -> Section:
    """Show all heads of the trained model on the sentence of the opening, and the same head on other sentences."""
    shipped = load_shipped()
    sentence, report = shipped.sentences[0], shipped.report
    layer, head = report.best_head
    section = trained_section(
        story._replace(
            tokens=sentence.tokens,
            query=len(sentence.tokens) - 1,
            layers=_traces(sentence),
            next_words=tuple(map(tuple, sentence.next_words)),
            best_head=(layer, head),
        )
    )
    layers, heads = report.attention.shape
    facts = {
        "width": sentence.queries.shape[-1],
        "layers": layers,
        "heads": heads,
        "layer": layer,
        "head": head,
        "sentences": HELD_OUT,
    }
    facts |= {"attention": report.attention.max(), "accuracy": report.accuracy, "bigram": report.bigram}
    steps = [equation for equation in section.equations if equation.name in ("Scaled", "Masked", "Weights")]
    shown = {name: section.numbers[name] for name in ("scores", "width", "scaled", "mask", "masked", "weights")}
    shown["scores"] = shown["scores"]._replace(note="the dot products of the head's queries and keys")
    return section._replace(
        id="closing",
        numbers=shown,
        equations=steps,
        opened=2,
        title="What it leads to: “him” is the dog",
        paragraphs=[text.format(**facts) for text in ANSWER],
        tables=[*section.tables, _other_sentences(shipped)],
        code=CODE,
    )


def _weights(sentence: ShippedSentence) -> Array:
    """`(layers, H, T, T)`."""
    scale = sentence.queries.shape[-1] ** -0.5
    return attention_weights(attention_scores(sentence.queries, sentence.keys), Causal(), scale=scale)


def _traces(sentence: ShippedSentence) -> tuple[Trace, ...]:
    mask = jnp.tril(jnp.ones((len(sentence.tokens),) * 2, bool))
    traces = []
    for queries, keys, values, weights in zip(
        sentence.queries, sentence.keys, sentence.values, _weights(sentence), strict=True
    ):
        scores = attention_scores(queries, keys)
        scaled = scores * jnp.float32(queries.shape[-1] ** -0.5)
        arrays = {"queries": queries, "keys": keys, "values": values, "scores": scores, "scaled": scaled, "mask": mask}
        arrays |= {"masked": jnp.where(mask, scaled, -jnp.inf), "weights": weights}
        traces.append(Trace("MultiHeadAttention", arrays | {"context": context_vectors(weights, values)}))
    return tuple(traces)


def _other_sentences(shipped: Shipped) -> Table:
    """List each sentence, the noun that its pronoun means, and the head's weight of it and of its nearest rival."""
    layer, head = shipped.report.best_head
    rows = []
    for sentence in shipped.sentences:
        weights = np.asarray(_weights(sentence)[layer, head, -1])
        rival = int(np.argmax(np.where(np.arange(len(weights)) == sentence.noun, -1, weights)))
        origin = f"the weight at “{sentence.tokens[-1]}” in head {head} of layer {layer}"
        cells = [Cell(sentence.tokens[sentence.noun], "the noun that is meant, by the sentence's grammar")]
        cells += [Cell(f"{weights[sentence.noun]:.2f}", origin)]
        cells += [Cell(f"{sentence.tokens[rival]} {weights[rival]:.2f}", origin)]
        rows.append((" ".join(sentence.tokens), cells))
    return Table(
        f"The same head at the last word of other sentences (head {head} of layer {layer})",
        ["sentence", "meant", "its weight", "largest other weight"],
        rows,
    )
