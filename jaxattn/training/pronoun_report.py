"""What a model has learned of pronouns: how often it is right, and which head looks at the noun that is meant."""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn.models.gpt import GPT
from jaxattn.training.pronoun_words import PRONOUNS, vocabulary
from jaxattn.training.pronouns import Sentences
from jaxattn.training.saving import write_whole

_IDS = [vocabulary()[word] for word in PRONOUNS]


class PronounReport(NamedTuple):
    """Shares of sentences and of attention, from 0 to 1.

    Args:
        accuracy: how often the pronoun gets the larger logit of the two.
        accuracy_of_all: how often it gets the largest logit of all words.
        bigram: `accuracy` of a model that knows nothing but the word before.
        attention: `(layers, heads)`, what the pronoun pays to its noun, in the mean over sentences.
        attention_before: the same for the word before the pronoun, the one whose logits answer.
    """

    accuracy: float
    accuracy_of_all: float
    bigram: float
    attention: np.ndarray
    attention_before: np.ndarray

    @property
    def best_head(self) -> tuple[int, int]:
        """Layer and head whose attention from the pronoun to its noun is largest."""
        layer, head = np.unravel_index(self.attention.argmax(), self.attention.shape)
        return int(layer), int(head)


def write_report(file: Path, report: PronounReport) -> None:
    """Keep a report as JSON.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    write_whole(file, json.dumps(report._asdict(), indent=1, default=np.ndarray.tolist).encode())


def read_report(file: Path) -> PronounReport:
    """Read what `write_report` wrote.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    try:
        found = PronounReport(**json.loads(file.read_text(encoding="utf-8")))
        return found._replace(
            attention=np.array(found.attention, float), attention_before=np.array(found.attention_before, float)
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}): remove it, or name another run") from error


def report_pronouns(model: GPT, params: Any, sentences: Sentences, trained_on: Sentences) -> PronounReport:
    """Ask the model for the pronoun of every sentence, and see where it looks.

    Args:
        model: its context must reach beyond the last pronoun.
        params: its parameters.
        sentences: what to ask, held out from training.
        trained_on: sentences to count the bigram on.

    Returns:
        The shares.

    Raises:
        ValueError: the model's context or vocabulary is too small.

    References:
        Clark et al. 2019, "What Does BERT Look At?", finds heads that attend from a pronoun to what it means.
    """
    T = min(sentences.tokens.shape[1], model.config.context_length)
    if model.config.vocab_size < len(vocabulary()) or sentences.pronouns.max() >= T:
        raise ValueError(
            f"the model has vocab_size={model.config.vocab_size} and context_length={model.config.context_length}, but "
            f"the sentences need {len(vocabulary())} words and {sentences.pronouns.max() + 1} positions"
        )
    answers, attention = [], []
    for start in range(0, len(sentences.tokens), 256):
        part = Sentences(*(array[start : start + 256] for array in sentences))
        answer, weights = _answers(model, params, part._replace(tokens=part.tokens[:, :T]))
        answers.append(np.asarray(answer))  # (256, vocab_size)
        attention.append(np.asarray(weights, np.float64))  # (layers, 2, 256, H)
    logits = np.concatenate(answers)
    before, at = np.concatenate(attention, axis=2).mean(axis=2).swapaxes(0, 1)  # (layers, H) each
    right = np.take_along_axis(sentences.tokens, sentences.pronouns[:, None], axis=1)[:, 0]
    return PronounReport(
        accuracy=float((np.array(_IDS)[logits[:, _IDS].argmax(axis=1)] == right).mean()),
        accuracy_of_all=float((logits.argmax(axis=1) == right).mean()),
        bigram=bigram_accuracy(sentences, trained_on),
        attention=at,
        attention_before=before,
    )


def bigram_accuracy(sentences: Sentences, trained_on: Sentences) -> float:
    """Return how often the pronoun is the one that followed the word before it more often in other sentences."""

    def pairs(sentences: Sentences) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(len(sentences.tokens))
        before, pronoun = (sentences.tokens[rows, sentences.pronouns - back] for back in (1, 0))
        return before, (pronoun == _IDS[1]).astype(int)

    counts = np.zeros((len(vocabulary()), 2), int)
    np.add.at(counts, pairs(trained_on), 1)
    before, pronoun = pairs(sentences)
    return float((counts[before].argmax(axis=1) == pronoun).mean())


def table(report: PronounReport) -> str:
    """Lay the report out in lines of plain text.

    Example:
        >>> import numpy as np
        >>> from jaxattn.training.pronoun_report import PronounReport, table
        >>> at = np.array([[0.1, 0.2], [0.9, 0.0]])
        >>> print(table(PronounReport(1.0, 0.999, 0.5, at, at / 2)))
        pronoun right, of him and her    100.0 %
        pronoun right, of all words       99.9 %
        bigram right, of him and her      50.0 %
        mean attention to the noun that is meant, from the pronoun (from the word before it)
                      head 0       head 1
        layer 0  0.10 (0.05)  0.20 (0.10)
        layer 1  0.90 (0.45)  0.00 (0.00)
        layer 1, head 0 finds the noun: it gets 0.90 of that head's attention
    """
    shares = [
        ("pronoun right, of him and her", report.accuracy),
        ("pronoun right, of all words", report.accuracy_of_all),
        ("bigram right, of him and her", report.bigram),
    ]
    lines = [f"{words:<31}{share:8.1%}".replace("%", " %") for words, share in shares]
    lines.append("mean attention to the noun that is meant, from the pronoun (from the word before it)")
    layers, heads = report.attention.shape
    lines.append(" " * 7 + "".join(f"{f'head {head}':>13}" for head in range(heads)))
    for layer in range(layers):
        cells = zip(report.attention[layer], report.attention_before[layer], strict=True)
        lines.append(f"layer {layer}" + "".join(f"{f'{at:.2f} ({before:.2f})':>13}" for at, before in cells))
    layer, head = report.best_head
    share = report.attention[layer, head]
    does = "finds the noun" if share >= 0.5 else "looks at the noun most, but has not found it"
    return "\n".join([*lines, f"layer {layer}, head {head} {does}: it gets {share:.2f} of that head's attention"])


@functools.partial(jax.jit, static_argnums=0)
def _answers(model: GPT, params: Any, sentences: Any) -> tuple[Array, Array]:
    """Return the logits that answer `(N, vocab_size)`, and attention to the noun `(layers, 2, N, H)`.

    The first of the two is paid by the word before the pronoun, the second by the pronoun.
    """
    logits, stored = model.apply({"params": params}, sentences.tokens, mutable=["intermediates"])
    rows = jnp.arange(len(sentences.tokens))
    blocks = (stored["intermediates"][f"block_{n}"] for n in range(model.config.num_layers))
    weights = jnp.stack([block["attention"]["weights"][0] for block in blocks])  # (layers, N, H, T, T)
    paid = [weights[:, rows, :, sentences.pronouns - back, sentences.nouns] for back in (1, 0)]  # (N, layers, H) each
    return logits[rows, sentences.pronouns - 1], jnp.stack(paid).transpose(2, 0, 1, 3)
