"""What a model has learned about pronouns: its accuracy, and which head attends from the pronoun to its noun."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn.files import read_json
from jaxattn.models.gpt import GPT
from jaxattn.tasks.pronouns.sentences import Sentences
from jaxattn.tasks.pronouns.words import PRONOUNS, vocabulary
from jaxattn.tasks.reports import largest

_IDS = [vocabulary()[word] for word in PRONOUNS]
BATCH = 256


class PronounReport(NamedTuple):
    """Fractions of the sentences, and mean attention weights, from 0 to 1.

    Args:
        accuracy: how often the right pronoun has the larger logit of the two.
        accuracy_of_all: how often the right pronoun has the largest logit of all words.
        bigram: `accuracy` of a model that knows only the word before.
        attention: `(layers, heads)`, the weight from the pronoun to its noun, mean over the sentences.
        attention_before: the same from the word before the pronoun, whose logits predict the pronoun.
    """

    accuracy: float
    accuracy_of_all: float
    bigram: float
    attention: np.ndarray
    attention_before: np.ndarray

    @property
    def best_head(self) -> tuple[int, int]:
        """The layer and head with the largest attention from the pronoun to its noun."""
        return largest(self.attention)


def read_report(file: Path) -> PronounReport:
    """Read a report that `tasks.reports.write_report` has written.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged.
    """
    try:
        found = PronounReport(**read_json(file))
        return found._replace(
            attention=np.array(found.attention, float), attention_before=np.array(found.attention_before, float)
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}): remove it, or name another run") from error


def report_pronouns(model: GPT, params: Any, sentences: Sentences, training: Sentences) -> PronounReport:
    """Let the model predict the pronoun of every sentence, and read its attention weights.

    Args:
        model: its context must include the last pronoun.
        params: its parameters.
        sentences: the test sentences, held out from training.
        training: sentences on which the bigram is counted.

    Raises:
        ValueError: the model's context or vocabulary is too small.

    References:
        Clark et al. 2019, "What Does BERT Look At?", finds heads that attend from a pronoun to its noun.
    """
    T = min(sentences.tokens.shape[1], model.config.context_length)
    if model.config.vocab_size < len(vocabulary()) or sentences.pronouns.max() >= T:
        raise ValueError(
            f"the model has vocab_size={model.config.vocab_size} and context_length={model.config.context_length}, but "
            f"the sentences need {len(vocabulary())} words and {sentences.pronouns.max() + 1} positions"
        )
    all_logits, attention = [], []
    for start in range(0, len(sentences.tokens), BATCH):
        batch = Sentences(*(array[start : start + BATCH] for array in sentences))
        batch_logits, weights = _predict(model, params, batch._replace(tokens=batch.tokens[:, :T]))
        all_logits.append(np.asarray(batch_logits))  # (BATCH, vocab_size)
        attention.append(np.asarray(weights, np.float64))  # (layers, 2, BATCH, H)
    logits = np.concatenate(all_logits)
    before, at = np.concatenate(attention, axis=2).mean(axis=2).swapaxes(0, 1)  # (layers, H) each
    right = np.take_along_axis(sentences.tokens, sentences.pronouns[:, None], axis=1)[:, 0]
    return PronounReport(
        accuracy=float((np.array(_IDS)[logits[:, _IDS].argmax(axis=1)] == right).mean()),
        accuracy_of_all=float((logits.argmax(axis=1) == right).mean()),
        bigram=bigram_accuracy(sentences, training),
        attention=at,
        attention_before=before,
    )


def bigram_accuracy(sentences: Sentences, training: Sentences) -> float:
    """Return how often the right pronoun is the one that more often follows the word before it in training."""

    def pairs(sentences: Sentences) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(len(sentences.tokens))
        before, pronoun = (sentences.tokens[rows, sentences.pronouns - back] for back in (1, 0))
        return before, (pronoun == _IDS[1]).astype(int)

    counts = np.zeros((len(vocabulary()), 2), int)
    np.add.at(counts, pairs(training), 1)
    before, pronoun = pairs(sentences)
    return float((counts[before].argmax(axis=1) == pronoun).mean())


def format_report(report: PronounReport) -> str:
    """Write the report as lines of text.

    Example:
        >>> import numpy as np
        >>> from jaxattn.tasks.pronouns.report import PronounReport, format_report
        >>> at = np.array([[0.1, 0.2], [0.9, 0.0]])
        >>> print(format_report(PronounReport(1.0, 0.999, 0.5, at, at / 2)))
        right pronoun of him and her              100.0 %
        right pronoun of all words                 99.9 %
        a bigram model: right of him and her       50.0 %
        mean attention to the noun it refers to, from the pronoun (from the word before it)
                      head 0       head 1
        layer 0  0.10 (0.05)  0.20 (0.10)
        layer 1  0.90 (0.45)  0.00 (0.00)
        layer 1, head 0 finds the noun: it gets 0.90 of that head's attention
    """
    fractions = [
        ("right pronoun of him and her", report.accuracy),
        ("right pronoun of all words", report.accuracy_of_all),
        ("a bigram model: right of him and her", report.bigram),
    ]
    lines = [f"{words:<40}{fraction:8.1%}".replace("%", " %") for words, fraction in fractions]
    lines.append("mean attention to the noun it refers to, from the pronoun (from the word before it)")
    layers, heads = report.attention.shape
    lines.append(" " * 7 + "".join(f"{f'head {head}':>13}" for head in range(heads)))
    for layer in range(layers):
        weights = zip(report.attention[layer], report.attention_before[layer], strict=True)
        lines.append(f"layer {layer}" + "".join(f"{f'{at:.2f} ({before:.2f})':>13}" for at, before in weights))
    layer, head = report.best_head
    weight = report.attention[layer, head]
    finding = "finds the noun" if weight >= 0.5 else "attends to the noun most, but has not found it"
    return "\n".join([*lines, f"layer {layer}, head {head} {finding}: it gets {weight:.2f} of that head's attention"])


@functools.partial(jax.jit, static_argnums=0)
def _predict(model: GPT, params: Any, sentences: Any) -> tuple[Array, Array]:
    """Return the logits at the word before the pronoun `(N, vocab_size)`, and the attention to the noun.

    The attention `(layers, 2, N, H)` is from the word before the pronoun, then from the pronoun itself.
    """
    logits, collected = model.apply({"params": params}, sentences.tokens, mutable=["intermediates"])
    rows = jnp.arange(len(sentences.tokens))
    blocks = (collected["intermediates"][f"block_{n}"] for n in range(model.config.num_layers))
    weights = jnp.stack([block["attention"]["weights"][0] for block in blocks])  # (layers, N, H, T, T)
    to_noun = [
        weights[:, rows, :, sentences.pronouns - back, sentences.nouns] for back in (1, 0)
    ]  # (N, layers, H) each
    return logits[rows, sentences.pronouns - 1], jnp.stack(to_noun).transpose(2, 0, 1, 3)
