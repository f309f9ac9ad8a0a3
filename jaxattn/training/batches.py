"""Batches of sequences, cut out of a text at positions that follow from a seed alone."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax import Array

from jaxattn.training.text import Text

Result = TypeVar("Result")
Ids = TypeVar("Ids", np.ndarray, Array)


class Batch(NamedTuple):
    """Sequences of tokens `(B, length)`; of packed documents also their ids, the same shape, 0 for padding.

    Where whole sequences only fill up a batch, `is_real` `(B,)` is False for these.
    """

    tokens: Any
    documents: Any = None
    is_real: Any = None


def make_batch(text: Text, batch_size: int, length: int, seed: Sequence[int]) -> Batch:
    """Cut `batch_size` sequences of `length` tokens out of a text, at positions that follow from the seed alone.

    If the text has an EOS token, a sequence starts at a document if it can. Beyond the end of the text is padding.
    """
    tokens, documents = np.zeros((2, batch_size, length), np.int32)
    for row, (_, read, is_first) in enumerate(_sequences(text, batch_size, length, seed)):
        tokens[row, : len(read)] = read
        documents[row, : len(read)] = 1 + np.cumsum(is_first) - is_first[0]
    one_document = len(text.stretches) == 1 and text.eos_token is None
    return Batch(tokens, None if one_document else documents)


def fill_up(batch: Batch, batch_size: int, axis: int) -> Batch:
    """Add sequences without a loss to a batch, along this axis, up to `batch_size`."""

    def filled(array: np.ndarray) -> np.ndarray:
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, batch_size - array.shape[axis])
        return np.pad(array, widths)

    tokens = np.asarray(batch.tokens)
    if tokens.shape[axis] == batch_size:
        return batch
    return jax.tree.map(filled, batch._replace(is_real=np.ones(tokens.shape[:-1], bool)))


def batch_positions(text: Text, batch_size: int, length: int, seed: Sequence[int]) -> list[int]:
    """Return where the sequences of a batch start, in tokens from the beginning of the text."""
    return [position for position, _, _ in _sequences(text, batch_size, length, seed)]


def loss_mask(documents: Ids) -> Ids:
    """Return which next tokens `(..., length - 1)` have a loss: those of the same document, and no padding."""
    current, following = documents[..., :-1], documents[..., 1:]
    return (current == following) & (following > 0)


def prefetch(make: Callable[[int], Result], numbers: Sequence[int]) -> Iterator[tuple[int, Result]]:
    """Yield each number and `make(number)`; the next one is made in a thread while the caller uses this one."""
    with ThreadPoolExecutor(1) as thread:
        next_result = thread.submit(make, numbers[0]) if numbers else None
        for index, number in enumerate(numbers):
            assert next_result is not None
            result = next_result.result()
            if index + 1 < len(numbers):
                next_result = thread.submit(make, numbers[index + 1])
            yield number, result


def _sequences(
    text: Text, batch_size: int, length: int, seed: Sequence[int]
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Draw the sequences of a batch: where each starts, its tokens, and whether they are the first of a document."""
    for position in np.random.default_rng(seed).integers(0, len(text) - length + 1, batch_size):
        if text.eos_token is None:
            yield int(position), *text.read(position, position + length)
        else:
            # Read twice the length, to start at the first document that begins within the sequence.
            tokens, is_first = text.read(position, position + 2 * length)
            start = int(np.argmax(is_first[:length]))
            yield int(position) + start, tokens[start : start + length], is_first[start : start + length]
