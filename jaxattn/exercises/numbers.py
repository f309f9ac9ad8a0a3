"""Attention in NumPy, in float64, with a switch for each mistake; and inputs on which no two mistakes agree."""

import json
from importlib import resources
from typing import Any

import numpy as np

BOOK = json.loads(resources.files("jaxattn.guide").joinpath("book.json").read_text("utf-8"))
X = np.array(BOOK["inputs"], np.float32)  # (6, 3): "Your journey starts with one step"

# Which of w_query, w_key and w_value makes the queries, the keys and the values.
MIXED_UP = {
    "has queries and keys swapped: rows belong to queries, query @ key.T": (1, 0, 2),
    "has keys and values swapped: queries are compared with keys, and values are averaged": (0, 2, 1),
    "averages the keys: the values have a matrix of their own": (0, 1, 1),
    "uses the queries as keys: w_key is a matrix of its own": (0, 0, 2),
    "uses the keys as queries: w_query is a matrix of its own": (1, 1, 2),
}


def draw(seed: int, *shapes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Return normal random numbers, far enough from 0 to tell mistakes apart."""
    random = np.random.default_rng(seed)
    return tuple(random.standard_normal(shape).astype(np.float32) for shape in shapes)


def softmax(scores: Any, axis: int | tuple[int, ...] | None = -1) -> np.ndarray:
    """Exponentials over their sum."""
    exponentials = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


def tril(T: int, k: int = 0) -> np.ndarray:
    """True up to diagonal k."""
    return np.tril(np.ones((T, T), bool), k)


def weights_of(scores: Any, mask: Any = None, axis: int = -1, fill: float | None = None) -> np.ndarray:
    """Softmax with masked scores at −∞; a row without keys is 0, or as a plain softmax of `fill` leaves it."""
    if fill is not None:
        return softmax(np.where(mask, scores, fill), axis)
    masked = scores if mask is None else np.where(mask, scores, -np.inf)
    largest = masked.max(axis=axis, keepdims=True)
    exponentials = np.exp(masked - np.where(np.isfinite(largest), largest, 0))
    total = exponentials.sum(axis=axis, keepdims=True)
    return exponentials / np.where(total == 0, 1, total)


def attend(query: Any, key: Any, value: Any, *, scale: float, weigh: Any = weights_of, **options: Any) -> np.ndarray:
    """Attention with any leading axes, and a softmax of one's own."""
    return weigh(query @ np.swapaxes(key, -1, -2) * scale, **options) @ value


def heads_of(array: Any, H: int) -> np.ndarray:
    """(T, H · D) -> (H, T, D)."""
    T, width = array.shape
    return array.reshape(T, H, width // H).swapaxes(0, 1)


def joined(heads: Any) -> np.ndarray:
    """(H, T, D) -> (T, H · D)."""
    return heads.swapaxes(0, 1).reshape(heads.shape[1], -1)
