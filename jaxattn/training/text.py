"""Text as files of tokens, split into a training part and a held-out part; only what is asked for is read."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

HELD_OUT = 0.1


class Stretch(NamedTuple):
    """Tokens `start` to `stop` of a file that holds nothing but numbers of one type."""

    file: Path
    dtype: str
    start: int
    stop: int


class Text(NamedTuple):
    """Stretches of tokens, each the beginning of a document; within a file, the EOS token ends a document, if given."""

    stretches: tuple[Stretch, ...]
    eos_token: int | None = None

    def __len__(self) -> int:
        return sum(stretch.stop - stretch.start for stretch in self.stretches)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens from `start` to `stop`, and whether each is the first of a document.

        A file stays mapped only while it is read, so that memory does not grow with what has been read.
        """
        tokens, is_first, offset = [], [], 0
        for stretch in self.stretches:
            a, b = (min(max(n - offset, 0), stretch.stop - stretch.start) for n in (start, stop))
            if a < b:
                mapped = np.memmap(stretch.file, stretch.dtype, mode="r")
                piece = np.array(mapped[stretch.start + a : stretch.start + b], np.int32)
                tokens.append(piece)
                follows_eos = np.zeros(b - a, bool) if self.eos_token is None else np.roll(piece == self.eos_token, 1)
                follows_eos[0] = a == 0 or (
                    self.eos_token is not None and mapped[stretch.start + a - 1] == self.eos_token
                )
                is_first.append(follows_eos)
            offset += stretch.stop - stretch.start
        if not tokens:
            return np.zeros(0, np.int32), np.zeros(0, bool)
        return np.concatenate(tokens), np.concatenate(is_first)


class Corpus(NamedTuple):
    """Text to train on and text held out."""

    train: Text
    held_out: Text


def make_corpus(
    files: Sequence[Path], context_length: int, dtype: str = "uint8", eos_token: int | None = None
) -> Corpus:
    """Hold out the last tenth of each file of tokens; nothing is read yet.

    Args:
        files: files of tokens; a plain text is a file of bytes.
        context_length: both parts must hold at least one sequence of this length and the token that follows it.
        dtype: the type of the tokens in the files, "uint8", "uint16" or "uint32".
        eos_token: the token that ends a document within a file, if there is one.

    Raises:
        OSError: a file cannot be read.
        ValueError: there is too little text.
    """
    train: list[Stretch] = []
    held_out: list[Stretch] = []
    for file in files:
        with open(file, "rb"):  # raises an OSError now if the file cannot be read
            length = os.path.getsize(file) // np.dtype(dtype).itemsize
        cut = round(length * (1 - HELD_OUT))
        for part, start, stop in ((train, 0, cut), (held_out, cut, length)):
            if start < stop:
                part.append(Stretch(file, dtype, start, stop))
    corpus = Corpus(Text(tuple(train), eos_token), Text(tuple(held_out), eos_token))
    check_length(corpus, context_length, "bytes" if dtype == "uint8" else "tokens")
    return corpus


def check_length(corpus: Corpus, context_length: int, unit: str) -> None:
    """Check that both parts hold at least one sequence and the token that follows it.

    Raises:
        ValueError: there is too little text.
    """
    if min(map(len, corpus)) <= context_length:
        need = round((context_length + 1) / HELD_OUT)
        raise ValueError(
            f"the text has {sum(map(len, corpus)):,} {unit}, but with a context of {context_length} and a tenth "
            f"held out, about {need:,} are needed: add more text, or choose a shorter --context-length"
        )
