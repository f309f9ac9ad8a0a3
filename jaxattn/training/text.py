"""Text as bytes: read, split into a part to learn from and a part held out, cut into batches."""

import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

HELD_OUT = 0.1
STANDARD_LIBRARY_BYTES = 4_000_000


class Corpus(NamedTuple):
    """Bytes to learn from and bytes held out, one-dimensional arrays of uint8."""

    train: np.ndarray
    held_out: np.ndarray


def load_corpus(files: Sequence[str], context_length: int) -> Corpus:
    """Read the files, the standard library's source if there are none, and hold out the last tenth of each.

    Args:
        files: paths; what is in them is taken as bytes, whatever the encoding.
        context_length: each part must hold at least one sequence of this length and the byte that follows it.

    Returns:
        The two parts.

    Raises:
        OSError: a file cannot be read.
        ValueError: there is too little text.

    Example:
        >>> from jaxattn.training.text import load_corpus
        >>> corpus = load_corpus([], context_length=128)
        >>> len(corpus.train) > 8 * len(corpus.held_out) > 0
        True
    """
    texts = [np.frombuffer(path.read_bytes(), np.uint8) for path in map(Path, files)] if files else standard_library()
    cuts = [round(len(text) * (1 - HELD_OUT)) for text in texts]
    train = np.concatenate([text[:cut] for text, cut in zip(texts, cuts, strict=True)])
    held_out = np.concatenate([text[cut:] for text, cut in zip(texts, cuts, strict=True)])
    if len(held_out) <= context_length or len(train) <= context_length:
        need = round((context_length + 1) / HELD_OUT)
        raise ValueError(
            f"the text has {len(train) + len(held_out):,} bytes, but with a context of {context_length} and a tenth "
            f"held out it takes about {need:,}: give more text, or a shorter --context-length"
        )
    return Corpus(train, held_out)


def standard_library() -> list[np.ndarray]:
    """Return the source of the standard library's modules in alphabetical order, a few million bytes."""
    texts: list[np.ndarray] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"), key=lambda path: path.name):
        texts.append(np.frombuffer(path.read_bytes(), np.uint8))
        if sum(map(len, texts)) > STANDARD_LIBRARY_BYTES:
            break
    if not texts:
        raise ValueError("this Python carries no source of its standard library: name a text with --text FILE")
    return texts


def batch(text: np.ndarray, batch_size: int, length: int, seed: Sequence[int]) -> np.ndarray:
    """Cut `batch_size` stretches of `length` bytes out of a text, at places that follow from the seed alone.

    Example:
        >>> import numpy as np
        >>> from jaxattn.training.text import batch
        >>> batch(np.arange(100, dtype=np.uint8), 2, 5, seed=(0, 1)).shape
        (2, 5)
    """
    starts = np.random.default_rng(seed).integers(0, len(text) - length + 1, batch_size)
    return text[starts[:, None] + np.arange(length)]


def bigram_loss(train: np.ndarray, sequences: np.ndarray) -> float:
    """Score sequences `(..., length)` with a bigram model counted on `train`: mean nats for a byte, given the last one.

    Every pair counts once more than it occurs, so that no pair is impossible. It is the yardstick: what can be known
    of the next byte without looking further back than one.

    Example:
        >>> import numpy as np
        >>> from jaxattn.training.text import bigram_loss
        >>> round(bigram_loss(np.zeros(0, np.uint8), np.zeros((1, 9), np.uint8)), 4)  # nothing seen: log 256
        5.5452
    """
    pairs = train[:-1].astype(np.int64) * 256 + train[1:]
    counts = np.bincount(pairs, minlength=256 * 256).reshape(256, 256) + 1.0
    log_probabilities = np.log(counts / counts.sum(axis=1, keepdims=True))
    return float(-log_probabilities[sequences[..., :-1], sequences[..., 1:]].mean())
