"""What is known of a cell (query, key) beside its score: is it visible, what is its bias, does dropout keep it."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxattn.fast.blocks import Index, take
from jaxattn.functional import dropout_words, kept_cells
from jaxattn.masks import Lengths, Mask

LOG2_E = 1.4426950408889634


class Settings(NamedTuple):
    """What is fixed when the program is compiled."""

    scale: float
    dropout_rate: float
    reach: int | None
    precision: lax.Precision | None

    @property
    def exponent_scale(self) -> float:
        """The factor on query · key that gives exponents of 2."""
        return self.scale * LOG2_E


class Cells(NamedTuple):
    """Mask, bias, and dropout's words for rows and columns; every array has axes (B, K, G, T, S), or 1 for all."""

    mask: Mask | None = None
    bias: Array | None = None
    rows: Array | None = None
    columns: Array | None = None

    def padded(self, T: int, S: int, real_keys: int) -> "Cells":
        """Lengthen to T queries and S keys, of which those beyond `real_keys` are hidden."""
        mask = self.mask
        if real_keys < S:
            inside = Lengths(jnp.full((1,) * 5, real_keys))
            mask = inside if mask is None else mask & inside
        return jax.tree.map(lambda array: _edge_padded(array, T, S), self._replace(mask=mask))

    def cut(self, corner: Index, block: tuple[int, ...], turned: bool = False) -> "Cells":
        """Return the cells of one block, with the axes of queries and keys swapped if `turned`."""
        block_of = jax.tree.map(lambda array: take(array, corner, block), self)
        return jax.tree.map(lambda array: jnp.swapaxes(array, 3, 4), block_of) if turned else block_of

    def score(self, scores: Array, query: Array, key: Array, turned: bool = False) -> Array:
        """Add the bias and hide what the mask hides; the block begins at these positions."""
        if self.bias is not None:
            scores = scores + self.bias.astype(scores.dtype) * jnp.asarray(LOG2_E, scores.dtype)
        if self.mask is not None:
            query_axis, key_axis = (4, 3) if turned else (3, 4)
            queries = query + _count_along(query_axis, scores, query.dtype)
            keys = key + _count_along(key_axis, scores, key.dtype)
            scores = jnp.where(self.mask.sees(queries, keys), scores, -jnp.inf)
        return scores

    def drop(self, weights: Array, rate: float) -> Array:
        """Drop weights out, or their gradients."""
        if self.rows is None or self.columns is None:
            return weights
        factor = jnp.asarray(1 / (1 - rate), weights.dtype)
        return jnp.where(kept_cells(self.rows, self.columns, rate), weights * factor, 0)


def gather_cells(
    shape: tuple[int, ...],
    K: int,
    mask: Mask | None,
    bias: Array | None,
    rate: float,
    key: Array | None,
    dropout_shared: bool,
) -> Cells:
    """Lay out what belongs to scores of shape `(..., H, T, S)`; the same words as dropout draws elsewhere."""
    *batch, H, T, S = shape
    B = math.prod(batch)

    def five_axes(array: Array) -> Array:
        array = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
        *examples, heads, rows, columns = array.shape
        if any(n != 1 for n in examples):
            array = jnp.broadcast_to(array, (*batch, heads, rows, columns))
        each = B if any(n != 1 for n in examples) else 1
        return array.reshape(each, *((1, 1) if heads == 1 else (K, H // K)), rows, columns)

    rows, columns = (
        (None, None) if key is None or rate == 0 else dropout_words(key, shape[-2:] if dropout_shared else shape)
    )
    return jax.tree.map(five_axes, Cells(None if mask is None else mask.spread(T, S), bias, rows, columns))


def _edge_padded(array: Array, T: int, S: int) -> Array:
    """Repeat the last entries; a query or key more does not change what a block shows."""
    widths = [(0, 0)] * 3 + [(0, 0 if n == 1 else to - n) for n, to in zip(array.shape[3:], (T, S), strict=True)]
    return array if not any(after for _, after in widths) else jnp.pad(array, widths, mode="edge")


def _count_along(axis: int, scores: Array, dtype: Any) -> Array:
    shape = tuple(size if i == axis else 1 for i, size in enumerate(scores.shape))
    return lax.broadcasted_iota(dtype, shape, axis)
