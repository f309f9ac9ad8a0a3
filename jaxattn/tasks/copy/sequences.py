"""Sequences to copy: random letters, a separator, the same letters again, EOS."""

import string

import numpy as np

from jaxattn.training.tokenizer import EOS

SEPARATOR = "|"
LETTERS = tuple(string.ascii_lowercase)
WORDS = (EOS, SEPARATOR, *LETTERS)
NUMBER = 12  # letters that are copied
LENGTH = 2 * NUMBER + 2  # words in a sequence, the separator and EOS included
TRAINING, HELD_OUT = 50_000, 2000  # sequences of a run


def make_sequences(seed: int, number: int, *, held_out: bool) -> np.ndarray:
    """Draw sequences of token ids `(number, LENGTH)`; the same arguments give the same sequences.

    Example:
        >>> from jaxattn.tasks.copy.sequences import WORDS, make_sequences
        >>> " ".join(WORDS[token] for token in make_sequences(0, 1, held_out=False)[0])
        'w q n h i b b a e v q x | w q n h i b b a e v q x <|endoftext|>'
    """
    random = np.random.default_rng((seed, held_out))
    letters = random.integers(len(WORDS) - len(LETTERS), len(WORDS), (number, NUMBER))
    separator, end = (np.full((number, 1), WORDS.index(word)) for word in (SEPARATOR, EOS))
    return np.concatenate([letters, separator, letters, end], axis=1, dtype=np.int32)


def training_sequences(seed: int) -> np.ndarray:
    """Return the sequences that a run trains on."""
    return make_sequences(seed, TRAINING, held_out=False)


def held_out_sequences(seed: int) -> np.ndarray:
    """Return the sequences that a run is tested on."""
    return make_sequences(seed, HELD_OUT, held_out=True)
