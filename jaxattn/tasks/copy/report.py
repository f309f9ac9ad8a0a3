"""What a model has learned about copying: how often the copy is right, and which head finds the letter to copy."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn.models.gpt import GPT
from jaxattn.tasks.copy.sequences import LETTERS, NUMBER, WORDS
from jaxattn.tasks.reports import largest

BATCH = 256
# The positions of the letters, of their copies, and of the words from which the copies are predicted.
ORIGINAL, COPY, BEFORE = (np.arange(NUMBER) + start for start in (0, NUMBER + 1, NUMBER))


class CopyReport(NamedTuple):
    """Fractions and mean attention weights, from 0 to 1.

    Args:
        accuracy: how often the model's likeliest next word is right, over all letters of the copies.
        bigram: the same for a model that knows only the word before.
        attention: `(layers, heads)`, the weight from the word before each letter of the copy to that letter in the
            original, mean over the copies.
    """

    accuracy: float
    bigram: float
    attention: np.ndarray

    @property
    def best_head(self) -> tuple[int, int]:
        """The layer and head with the largest attention to the letter to copy."""
        return largest(self.attention)


def report_copying(model: GPT, params: Any, sequences: np.ndarray, training: np.ndarray) -> CopyReport:
    """Let the model predict every letter of every copy from the right words before it, and read its weights.

    Args:
        model: its context must hold a sequence.
        params: its parameters.
        sequences: the test sequences `(N, LENGTH)`, held out from training.
        training: sequences on which the bigram is counted.
    """
    right: list[np.ndarray] = []
    attention: list[np.ndarray] = []
    for start in range(0, len(sequences), BATCH):
        batch_right, weights = _predict(model, params, sequences[start : start + BATCH])
        right.append(np.asarray(batch_right))  # (BATCH, NUMBER)
        attention.append(np.asarray(weights, np.float64))  # (layers, BATCH, H, NUMBER)
    bigram = _bigram_guesses(training)[sequences[:, BEFORE]] == sequences[:, COPY]
    return CopyReport(
        accuracy=float(np.concatenate(right).mean()),
        bigram=float(bigram.mean()),
        attention=np.concatenate(attention, axis=1).mean(axis=(1, 3)),
    )


def format_report(report: CopyReport) -> str:
    """Write the report as lines of text.

    Example:
        >>> import numpy as np
        >>> from jaxattn.tasks.copy.report import CopyReport, format_report
        >>> print(format_report(CopyReport(0.998, 0.04, np.array([[0.1, 0.2], [0.9, 0.0]]))))
        right letter in the copy                   99.8 %
        a bigram model: right letter                4.0 %
        mean attention to the letter that comes next in the copy, where it stands in the original
                 head 0  head 1
        layer 0    0.10    0.20
        layer 1    0.90    0.00
        layer 1, head 0 copies: the letter that comes next gets 0.90 of its attention
    """
    fractions = [("right letter in the copy", report.accuracy), ("a bigram model: right letter", report.bigram)]
    lines = [f"{words:<40}{fraction:8.1%}".replace("%", " %") for words, fraction in fractions]
    lines.append("mean attention to the letter that comes next in the copy, where it stands in the original")
    lines.append(" " * 7 + "".join(f"{f'head {head}':>8}" for head in range(report.attention.shape[1])))
    for layer, weights in enumerate(report.attention):
        lines.append(f"layer {layer}" + "".join(f"{weight:8.2f}" for weight in weights))
    layer, head = report.best_head
    weight = report.attention[layer, head]
    finding = "copies" if weight >= 0.5 else "comes nearest to copying"
    return "\n".join(
        [*lines, f"layer {layer}, head {head} {finding}: the letter that comes next gets {weight:.2f} of its attention"]
    )


def _bigram_guesses(training: np.ndarray) -> np.ndarray:
    """Return the letter that follows each word most often in training."""
    counts = np.zeros((len(WORDS), len(WORDS)), int)
    np.add.at(counts, (training[:, :-1], training[:, 1:]), 1)
    first = WORDS.index(LETTERS[0])
    return first + counts[:, first:].argmax(axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _predict(model: GPT, params: Any, tokens: Array) -> tuple[Array, Array]:
    """Return which letters of the copies are right (N, NUMBER), and the weights to their originals.

    The weights `(layers, N, H, NUMBER)` are from the word before each letter of the copy.
    """
    logits, collected = model.apply({"params": params}, tokens, mutable=["intermediates"])
    blocks = (collected["intermediates"][f"block_{n}"] for n in range(model.config.num_layers))
    weights = jnp.stack([block["attention"]["weights"][0] for block in blocks])  # (layers, N, H, T, T)
    return logits[:, BEFORE].argmax(-1) == tokens[:, COPY], weights[..., BEFORE, ORIGINAL]
