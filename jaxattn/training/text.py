"""Text as tokens on disk: split into a part to learn from and a part held out, cut into batches, never read whole."""

import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HELD_OUT = 0.1
STANDARD_LIBRARY_BYTES = 4_000_000
# Pairs are counted on so many tokens at most, and for vocabularies up to this size: enough for a yardstick.
COUNTED_TOKENS, COUNTED_VOCABULARY, CHUNK = 2**25, 2048, 2**20


class Batch(NamedTuple):
    """Sequences of tokens `(B, length)`; of packed documents also their ids, equal shape, 0 for padding."""

    tokens: Any
    documents: Any = None


class Stretch(NamedTuple):
    """Tokens `start` to `stop` of a file that holds nothing but numbers of one type."""

    file: Path
    dtype: str
    start: int
    stop: int


class Text(NamedTuple):
    """Documents one after the other; `separator`, if any, is the token that ends a document within a file."""

    stretches: tuple[Stretch, ...]
    separator: int | None = None

    def __len__(self) -> int:
        return sum(stretch.stop - stretch.start for stretch in self.stretches)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens from `start` to `stop`, and whether each is the first of a document.

        Files are mapped for the moment of reading only, so that what was read does not add up in memory.
        """
        tokens, first, offset = [], [], 0
        for stretch in self.stretches:
            a, b = (min(max(n - offset, 0), stretch.stop - stretch.start) for n in (start, stop))
            if a < b:
                mapped = np.memmap(stretch.file, stretch.dtype, mode="r")
                piece = np.array(mapped[stretch.start + a : stretch.start + b], np.int32)
                tokens.append(piece)
                after = np.zeros(b - a, bool) if self.separator is None else np.roll(piece == self.separator, 1)
                after[0] = a == 0 or (self.separator is not None and mapped[stretch.start + a - 1] == self.separator)
                first.append(after)
            offset += stretch.stop - stretch.start
        if not tokens:
            return np.zeros(0, np.int32), np.zeros(0, bool)
        return np.concatenate(tokens), np.concatenate(first)


class Corpus(NamedTuple):
    """Text to learn from and text held out."""

    train: Text
    held_out: Text


def make_corpus(
    files: Sequence[Path], context_length: int, dtype: str = "uint8", separator: int | None = None
) -> Corpus:
    """Hold out the last tenth of each file of tokens.

    Args:
        files: files that hold tokens of the type and nothing else; a text is a file of bytes.
        context_length: each part must hold at least one sequence of this length and the token that follows it.
        dtype: the type of the tokens, "uint8", "uint16" or "uint32".
        separator: the token that ends a document within a file, if there is one.

    Returns:
        The two parts; nothing is read yet.

    Raises:
        OSError: a file cannot be read.
        ValueError: there is too little text.

    Example:
        >>> from jaxattn.training.text import make_corpus, standard_library
        >>> corpus = make_corpus(standard_library(), context_length=128)
        >>> len(corpus.train) > 8 * len(corpus.held_out) > 0
        True
    """
    parts: tuple[list[Stretch], list[Stretch]] = ([], [])
    for file in files:
        with open(file, "rb"):  # so that what cannot be read is said before anything else
            length = os.path.getsize(file) // np.dtype(dtype).itemsize
        cut = round(length * (1 - HELD_OUT))
        for part, start, stop in ((parts[0], 0, cut), (parts[1], cut, length)):
            if start < stop:
                part.append(Stretch(file, dtype, start, stop))
    corpus = Corpus(*(Text(tuple(part), separator) for part in parts))
    check_length(corpus, context_length, "bytes" if dtype == "uint8" else "tokens")
    return corpus


def check_length(corpus: Corpus, context_length: int, unit: str) -> None:
    """See that each part holds at least one sequence and the token that follows it.

    Raises:
        ValueError: there is too little text.
    """
    if min(map(len, corpus)) <= context_length:
        need = round((context_length + 1) / HELD_OUT)
        raise ValueError(
            f"the text has {sum(map(len, corpus)):,} {unit}, but with a context of {context_length} and a tenth "
            f"held out it takes about {need:,}: give more text, or a shorter --context-length"
        )


def standard_library() -> list[Path]:
    """Return the modules of the standard library in alphabetical order, a few million bytes of source."""
    files: list[Path] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"), key=lambda path: path.name):
        files.append(path)
        if sum(path.stat().st_size for path in files) > STANDARD_LIBRARY_BYTES:
            break
    if not files:
        raise ValueError("this Python carries no source of its standard library: name a text with --text FILE")
    return files


def make_batch(text: Text, batch_size: int, length: int, seed: Sequence[int]) -> Batch:
    """Cut `batch_size` sequences of `length` tokens out of a text, at places that follow from the seed alone.

    Where documents are short, a sequence begins with a document. What lies beyond the text's end is padding.

    Example:
        >>> from jaxattn.training.text import make_batch, make_corpus, standard_library
        >>> text = make_corpus(standard_library(), context_length=8).train
        >>> make_batch(text, 2, 5, seed=(0, 1)).tokens.shape
        (2, 5)
    """
    tokens, documents = np.zeros((2, batch_size, length), np.int32)
    for row, (_, read, first) in enumerate(_sequences(text, batch_size, length, seed)):
        tokens[row, : len(read)] = read
        documents[row, : len(read)] = 1 + np.cumsum(first) - first[0]
    alone = len(text.stretches) == 1 and text.separator is None
    return Batch(tokens, None if alone else documents)


def batch_places(text: Text, batch_size: int, length: int, seed: Sequence[int]) -> list[int]:
    """Return where the sequences of a batch begin, in tokens from the text's beginning."""
    return [place for place, _, _ in _sequences(text, batch_size, length, seed)]


def _sequences(
    text: Text, batch_size: int, length: int, seed: Sequence[int]
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Draw the sequences of a batch: where each begins, its tokens, and whether they are the first of a document."""
    for place in np.random.default_rng(seed).integers(0, len(text) - length + 1, batch_size):
        read, first = text.read(place, place + length if text.separator is None else place + 2 * length)
        begin = int(np.argmax(first[:length])) if text.separator is not None else 0
        yield int(place) + begin, read[begin : begin + length], first[begin : begin + length]


def bigram_loss(train: Text, batch: Batch, vocab_size: int) -> float | None:
    """Score sequences `(..., length)` with a bigram model counted on `train`: mean nats for a token, given the last.

    Every pair counts once more than it occurs, so that no pair is impossible. It is the yardstick: what can be known
    of the next token without looking further back than one. Vocabularies of more than 2048 tokens have none.

    Example:
        >>> import numpy as np
        >>> from jaxattn.training.text import Batch, Text, bigram_loss
        >>> round(bigram_loss(Text(()), Batch(np.zeros((1, 9), int)), 256), 4)  # nothing seen: log 256
        5.5452
    """
    if vocab_size > COUNTED_VOCABULARY:
        return None
    counts = np.ones(vocab_size**2)
    for start in range(0, min(len(train), COUNTED_TOKENS), CHUNK):
        tokens, _ = train.read(start, start + CHUNK + 1)
        counts += np.bincount(tokens[:-1].astype(np.int64) * vocab_size + tokens[1:], minlength=vocab_size**2)
    table = counts.reshape(vocab_size, vocab_size)
    log_probabilities = np.log(table / table.sum(axis=1, keepdims=True))
    losses = -log_probabilities[batch.tokens[..., :-1], batch.tokens[..., 1:]]
    if batch.documents is None:
        return float(losses.mean())
    here, following = batch.documents[..., :-1], batch.documents[..., 1:]
    return float(losses[(here == following) & (following > 0)].mean())
