"""Tiles: the parts of the arrays that one turn of a kernel's inner loop computes with.

In every array, an axis of 1 stands for all entries of that axis, in its tiles too.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxattn.kernels.blocks import Heads, Index, inside, pad_entries, split_heads, take
from jaxattn.kernels.call import LOG2_E, AttentionCall
from jaxattn.masks import Lengths, Mask
from jaxattn.random_bits import drop


def query_rows(array: Array, heads: Heads, first: Index, rows: int) -> Array:
    """(B, T, H, D) -> (B, K, G, rows, D)."""
    (*batch, _, _), (*sizes, nk, ng) = heads.start, heads.size
    tile = take(array, (*batch, first, heads.first_query_head, 0), (*sizes, rows, nk * ng, array.shape[-1]))
    return _grouped(tile.swapaxes(-3, -2), nk, ng)


def query_columns(array: Array, heads: Heads, first: Index, columns: int) -> Array:
    """(B, H, D, T) -> (B, K, G, D, columns)."""
    (*batch, _, _), (*sizes, nk, ng) = heads.start, heads.size
    tile = take(array, (*batch, heads.first_query_head, 0, first), (*sizes, nk * ng, array.shape[-2], columns))
    return _grouped(tile, nk, ng)


def key_rows(array: Array, heads: Heads, first: Index, rows: int) -> Array:
    """(B, S, K, D) -> (B, K, 1, rows, D)."""
    (*batch, k, _), (*sizes, nk, _) = heads.start, heads.size
    return take(array, (*batch, first, k, 0), (*sizes, rows, nk, array.shape[-1])).swapaxes(-3, -2)[..., None, :, :]


def key_columns(array: Array, heads: Heads, first: Index, columns: int) -> Array:
    """(B, K, D, S) -> (B, K, 1, D, columns)."""
    (*batch, k, _), (*sizes, nk, _) = heads.start, heads.size
    return take(array, (*batch, k, 0, first), (*sizes, nk, array.shape[-2], columns))[..., None, :, :]


class Entries(NamedTuple):
    """What belongs to each entry of the scores `(B, K, G, T, S)`: its mask, bias and dropout bits, all or one tile."""

    mask: Mask | None
    bias: Array | None
    row_bits: Array | None
    column_bits: Array | None

    @classmethod
    def of(cls, call: AttentionCall, T: int, S: int) -> "Entries":
        """Gather them from a call, padded to T queries and S keys; the padding of the keys is masked."""
        _, real_keys, H, K = call.sizes
        mask = call.mask
        if real_keys < S:
            inside = Lengths(jnp.full((1,) * (len(call.batch) + 3), real_keys))
            mask = inside if mask is None else mask & inside
        entries = cls(mask, call.bias, call.row_bits, call.column_bits)
        return jax.tree.map(lambda array: split_heads(pad_entries(array, T, S), H, K), entries)

    def tile(self, heads: Heads, first: tuple[Index, Index], size: tuple[int, int]) -> "Entries":
        """Return the tile that begins at this query and key."""
        return jax.tree.map(lambda array: take(array, (*heads.start, *first), (*heads.size, *size)), self)

    def transposed(self) -> "Entries":
        """Swap the axes of queries and keys."""
        return jax.tree.map(lambda array: jnp.swapaxes(array, -2, -1), self)

    def masked(self, scores: Array, queries: Array, keys: Array) -> Array:
        """Add the bias to base-2 scores, and set them to -inf where these positions are masked."""
        if self.bias is not None:
            scores = scores + self.bias.astype(scores.dtype) * jnp.asarray(LOG2_E, scores.dtype)
        return scores if self.mask is None else jnp.where(self.mask.allows(queries, keys), scores, -jnp.inf)

    def dropped(self, weights: Array, rate: float) -> Array:
        """Apply dropout to weights, or to their gradients."""
        if self.row_bits is None or self.column_bits is None:
            return weights
        return drop(weights, rate, self.row_bits, self.column_bits)


def put(array: Array, tile: Array, start: tuple[Index, ...]) -> Array:
    """Return the array with a tile written over it."""
    return lax.dynamic_update_slice(array, tile, inside(array, start))


def add(array: Array, tile: Array, start: tuple[Index, ...]) -> Array:
    """Return the array with a tile added to it."""
    return put(array, take(array, start, tile.shape) + tile, start)


def pad_tokens(array: Array, length: int, axis: int) -> Array:
    """Lengthen the token axis with zeros."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, length - array.shape[axis])
    return jnp.pad(array, widths)


def positions(first: Index, number: int) -> Array:
    """Return `number` positions from `first` on."""
    return jnp.asarray(first, int) + jnp.arange(number)


def full(shape: tuple[int, ...], value: Any, like: Array) -> Array:
    """Fill an array for a loop to carry; inside `jax.shard_map` it varies over the mesh axes over which `like` does."""
    filled = jnp.full(shape, value, like.dtype)
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return filled
    return jnp.where(jnp.isnan(like.ravel()[0]), filled, filled)


def _grouped(tile: Array, nk: int, ng: int) -> Array:
    """(B, nk * ng, ...) -> (B, nk, ng, ...)."""
    return tile.reshape(*tile.shape[:-3], nk, ng, *tile.shape[-2:])
