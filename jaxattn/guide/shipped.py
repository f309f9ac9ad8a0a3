"""Heads of a model that was trained on the pronoun task, shipped with the package, so that the page can open with them.

    python scripts/train.py --task pronouns --out runs/pronouns
    python -m jaxattn.guide.shipped runs/pronouns

writes them again.
"""

import io
import json
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn.cli import run_command
from jaxattn.files import write_whole
from jaxattn.guide.trace import Trace
from jaxattn.tasks.pronouns import REPORT
from jaxattn.tasks.pronouns.report import PronounReport, read_report
from jaxattn.training.saving import load_run

FILE = "pronouns.npz"
# Whom each pronoun means; the first is the sentence of the page.
SENTENCES = {
    "the old dog chased the quick fox which bit him": "dog",
    "the cow which met the young bull chased the hen which heard her": "cow",
    "near the ram , the tigress feared the small lion which saw her": "tigress",
    "the goose which followed the clever duck spotted her": "duck",
}


class ShippedSentence(NamedTuple):
    """What the model computed for a sentence that ends with a pronoun.

    Args:
        tokens: its words.
        noun: position of the noun that the pronoun refers to.
        queries: `(layers, H, T, D)`, and so are keys and values.
        keys: what queries are compared with.
        values: what is averaged.
        next_words: for each token the five likeliest next words, with their probabilities.
    """

    tokens: list[str]
    noun: int
    queries: Array
    keys: Array
    values: Array
    next_words: list[list[tuple[str, float]]]


class Shipped(NamedTuple):
    """The sentences, and the model's report over many others, which it never saw in training."""

    sentences: list[ShippedSentence]
    report: PronounReport


def load_shipped() -> Shipped:
    """Read the shipped heads.

    Example:
        >>> from jaxattn.guide.shipped import load_shipped
        >>> sentence = load_shipped().sentences[0]
        >>> sentence.tokens[-1], sentence.tokens[sentence.noun], sentence.queries.shape
        ('him', 'dog', (2, 4, 10, 32))
    """
    with np.load(io.BytesIO((resources.files("jaxattn.guide") / FILE).read_bytes())) as arrays:
        facts = json.loads(str(arrays["facts"]))
        sentences = [
            ShippedSentence(
                tokens=fact["tokens"],
                noun=fact["noun"],
                queries=jnp.asarray(arrays[f"{number}/queries"]),
                keys=jnp.asarray(arrays[f"{number}/keys"]),
                values=jnp.asarray(arrays[f"{number}/values"]),
                next_words=[[(word, p) for word, p in row] for row in fact["next_words"]],
            )
            for number, fact in enumerate(facts["sentences"])
        ]
    report = PronounReport(**facts["report"])
    attention, before = np.array(report.attention), np.array(report.attention_before)
    return Shipped(sentences, report._replace(attention=attention, attention_before=before))


def write_shipped(run: str, file: Path) -> None:
    """Trace a run of the pronoun task on the sentences, and save what the page needs."""
    # Here, because the page's story imports this module.
    from jaxattn.guide.trained import next_words_of, trace_layers

    model, params, tokenizer = load_run(run)
    arrays: dict[str, Any] = {}
    facts = []
    for number, (text, noun) in enumerate(SENTENCES.items()):
        tokens = tokenizer.encode(text)
        logits, layers = trace_layers(model, params, jnp.array(tokens))
        arrays |= {f"{number}/{name}": _stack(layers, name) for name in ("queries", "keys", "values")}
        next_words = next_words_of(tokenizer, jax.nn.softmax(logits))
        facts.append({"tokens": text.split(), "noun": text.split().index(noun), "next_words": next_words})
    report = read_report(Path(run) / REPORT)._asdict()
    text = json.dumps({"sentences": facts, "report": report}, default=np.ndarray.tolist)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, facts=np.array(text), **arrays)
    write_whole(file, buffer.getvalue())


def _stack(layers: Sequence[Trace], name: str) -> np.ndarray:
    return np.stack([np.asarray(layer[name], np.float32) for layer in layers])


def main(argv: Sequence[str]) -> int:
    """Write the file beside this module."""

    def write() -> int:
        if len(argv) != 1:
            raise ValueError("name one directory of a run of `train --task pronouns --out DIR`")
        write_shipped(argv[0], Path(__file__).with_name(FILE))
        return 0

    return run_command("jaxattn.guide.shipped", write)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
