"""The first and the last section: whom does "him" mean? The heads of a trained model, shipped with the package."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn.functional import attention_scores, attention_weights, context_vectors
from jaxattn.guide.section import Cell, Section, Table, constant, short
from jaxattn.guide.sections.trained import trained_section
from jaxattn.guide.shipped import Shipped, ShippedSentence, load_shipped
from jaxattn.guide.story import Story
from jaxattn.guide.trace import Trace
from jaxattn.masks import Causal

QUESTION = [
    "“{sentence}” Whom did the fox bite? You know at once: “him” is the dog. How does a model find out, which has "
    "nothing but numbers?",
    "The arc below is the answer of a small model, trained on sentences like this one. It compares words in eight ways "
    "side by side, called heads. At “him”, one of them attends to “{noun}”, with a weight of {weight:.3f} out of 1: "
    "what it passes on at “him” is an average of one vector for each word, and nearly all of it is the dog's.",
    "This page shows how such weights are computed, in the four steps of the book, with small numbers that you can "
    "follow by hand. At the end it comes back to this sentence, with the arithmetic of each weight that stands below.",
]
ANSWER = [
    "Here is the sentence of the beginning again, in each head of the model, {layers} layers of {heads}. The steps are "
    "those of section 4; only the vectors are wider, {width} elements in each head, so the steps shown here begin with "
    "their dot products.",
    "Over {sentences:,} sentences whose pair of noun and verb the model never saw, head {head} of layer {layer} gives "
    "the noun that is meant {attention:.2f} of its attention at the pronoun. In {accuracy:.1%} of them the model "
    "prefers the right one of “him” and “her”; a guess from the previous word alone is right in {bigram:.1%}. "
    "What the other heads do was not measured.",
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
    weights = _steps(sentence)["weights"][layer, head]
    facts = {
        "sentence": " ".join(sentence.tokens).capitalize() + ".",
        "noun": sentence.tokens[sentence.noun],
        "weight": weights[-1, sentence.noun],
    }
    return Section(
        id="opening",
        title=f"Whom does “{sentence.tokens[-1]}” mean?",
        tokens=sentence.tokens,
        query=len(sentence.tokens) - 1,
        paragraphs=[text.format(**facts) for text in QUESTION],
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


def _steps(sentence: ShippedSentence) -> dict[str, np.ndarray]:
    """Compute each step of all heads, `(layers, H, T, ...)`."""
    return jax.device_get(_attend(sentence.queries, sentence.keys, sentence.values))


@jax.jit
def _attend(queries: Array, keys: Array, values: Array) -> dict[str, Array]:
    T, D = queries.shape[-2:]
    mask, scores = Causal().array(T, T), attention_scores(queries, keys)
    scaled, weights = scores * jnp.float32(D**-0.5), attention_weights(scores, Causal(), scale=D**-0.5)
    steps = {"scores": scores, "scaled": scaled, "masked": jnp.where(mask, scaled, -jnp.inf), "weights": weights}
    return steps | {"context": context_vectors(weights, values)}


def _traces(sentence: ShippedSentence) -> tuple[Trace, ...]:
    given = {"queries": sentence.queries, "keys": sentence.keys, "values": sentence.values}
    steps = {name: np.asarray(array) for name, array in (given | _steps(sentence)).items()}
    mask = {"mask": np.tri(len(sentence.tokens), dtype=bool)}
    return tuple(
        Trace("MultiHeadAttention", {name: array[layer] for name, array in steps.items()} | mask)
        for layer in range(len(sentence.queries))
    )


def _other_sentences(shipped: Shipped) -> Table:
    """List each sentence, the noun that its pronoun means, and the head's weight of it and of its nearest rival."""
    layer, head = shipped.report.best_head
    rows = []
    for sentence in shipped.sentences:
        steps = _steps(sentence)
        weights = steps["weights"][layer, head, -1]
        rival = int(np.argmax(np.where(np.arange(len(weights)) == sentence.noun, -1, weights)))
        scaled = np.asarray(steps["scaled"])[layer, head, -1]
        note = f"softmax of the scaled scores at “{sentence.tokens[-1]}”, in head {head} of layer {layer}"
        total = " + ".join(f"exp({score:.4f})" for score in scaled)
        share = lambda place: f"exp({scaled[place]:.4f}) / ({total})"  # noqa: B023, E731
        cells = [Cell(sentence.tokens[sentence.noun], note="the noun that is meant, by the sentence's grammar")]
        cells += [Cell(short(weights[sentence.noun]), share(sentence.noun), note)]
        cells += [Cell(f"{sentence.tokens[rival]} {short(weights[rival])}", share(rival), note)]
        rows.append((" ".join(sentence.tokens), cells))
    return Table(
        f"The same head at the last word of other sentences (head {head} of layer {layer})",
        ["sentence", "meant", "its weight", "largest other weight"],
        rows,
    )
