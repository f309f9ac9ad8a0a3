"""Tiles: the parts of the arrays that one iteration of a kernel's inner loop works on.

In every array, an axis of 1 stands for all entries of that axis, in its tiles too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import PyTree

from jaxattn.kernels.blocks import HeadBlock, Index
from jaxattn.kernels.call import AttentionCall
from jaxattn.kernels.diagonals import pad_diagonals, tile_of_diagonals
from jaxattn.kernels.softmax import capped
from jaxattn.masks import Lengths, Mask
from jaxattn.random_bits import drop


def query_rows(array: Array, heads: HeadBlock, first: Index, rows: int) -> Array:
    """(B, T, H, D) -> (B, K, G, rows, D)."""
    (*batch, _, _), (*sizes, nk, ng) = heads.start, heads.size
    tile = take(array, (*batch, first, heads.first_query_head, 0), (*sizes, rows, nk * ng, array.shape[-1]))
    return _grouped(tile.swapaxes(-3, -2), nk, ng)


def query_columns(array: Array, heads: HeadBlock, first: Index, columns: int) -> Array:
    """(B, H, D, T) -> (B, K, G, D, columns)."""
    (*batch, _, _), (*sizes, nk, ng) = heads.start, heads.size
    tile = take(array, (*batch, heads.first_query_head, 0, first), (*sizes, nk * ng, array.shape[-2], columns))
    return _grouped(tile, nk, ng)


def key_rows(array: Array, heads: HeadBlock, first: Index, rows: int) -> Array:
    """(B, S, K, D) -> (B, K, 1, rows, D)."""
    (*batch, k, _), (*sizes, nk, _) = heads.start, heads.size
    return take(array, (*batch, first, k, 0), (*sizes, rows, nk, array.shape[-1])).swapaxes(-3, -2)[..., None, :, :]


def key_columns(array: Array, heads: HeadBlock, first: Index, columns: int) -> Array:
    """(B, K, D, S) -> (B, K, 1, D, columns)."""
    (*batch, k, _), (*sizes, nk, _) = heads.start, heads.size
    return take(array, (*batch, k, 0, first), (*sizes, nk, array.shape[-2], columns))[..., None, :, :]


class Diagonals(NamedTuple):
    """A bias by distance, padded (`diagonals.py`), and T with padding."""

    array: Array  # (B, K, G, 1, T + S)
    queries: int

    def first(self, first: tuple[Index, Index], rows: int) -> Index:
        """Return the first diagonal of a tile that begins at this query and key."""
        return first[1] - first[0] + self.queries - rows


class Entries(NamedTuple):
    """What belongs to each entry of the scores `(B, K, G, T, S)`: its mask, bias and dropout bits, all or one tile."""

    mask: Mask | None
    bias: Array | None
    row_bits: Array | None
    column_bits: Array | None
    diagonals: Diagonals | None  # instead of a bias; none in a tile

    @classmethod
    def of(cls, call: AttentionCall, T: int, S: int) -> "Entries":
        """Gather them from a call, padded to T queries and S keys; the padding of the keys is masked."""
        _, real_keys, H, K = call.sizes
        mask = call.mask
        if real_keys < S:
            no_padding = Lengths(jnp.full((1,) * (len(call.batch) + 3), real_keys))
            mask = no_padding if mask is None else mask & no_padding
        entries = cls(mask, call.bias, call.row_bits, call.column_bits, None)
        entries = jax.tree.map(lambda array: split_heads(pad_entries(array, T, S), H, K), entries)
        if call.diagonals is None:
            return entries
        return entries._replace(diagonals=Diagonals(split_heads(pad_diagonals(call, T, S), H, K), T))

    def tile(self, heads: HeadBlock, first: tuple[Index, Index], size: tuple[int, int]) -> "Entries":
        """Return the tile that begins at this query and key."""
        entries = self._replace(diagonals=None)
        entries = jax.tree.map(lambda array: take(array, (*heads.start, *first), (*heads.size, *size)), entries)
        if self.diagonals is None:
            return entries
        start = (*heads.start, 0, self.diagonals.first(first, size[0]))
        lines = take(self.diagonals.array, start, (*heads.size, 1, sum(size)))
        return entries._replace(bias=tile_of_diagonals(lines, *size))

    def transposed(self) -> "Entries":
        """Swap the axes of queries and keys of a tile."""
        return jax.tree.map(lambda array: jnp.swapaxes(array, -2, -1), self)

    def masked(self, call: AttentionCall, scores: Array, queries: Array, keys: Array) -> Array:
        """Return scores as in `softmax.py`, from query · key, and -inf where these positions are masked."""
        if not call.is_plain:
            scores = capped(call, scores * jnp.asarray(call.scale, scores.dtype))
        if self.bias is not None:
            scores = scores + self.bias.astype(scores.dtype)
        return scores if self.mask is None else jnp.where(self.mask.allows(queries, keys), scores, -jnp.inf)

    def dropped(self, weights: Array, rate: float) -> Array:
        """Apply dropout to weights, or to their gradients."""
        return drop(weights, rate, self.row_bits, self.column_bits)


def split_heads(array: Array, H: int, K: int) -> Array:
    """(B, H, T, S) -> (B, K, G, T, S); an axis of 1 becomes two."""
    heads = (1, 1) if array.shape[-3] == 1 else (K, H // K)
    return array.reshape(*array.shape[:-3], *heads, *array.shape[-2:])


def pad_entries(array: Array, T: int, S: int) -> Array:
    """Pad (..., T, S) by repeating the last entries, so that a mask's minimum and maximum in a block stay the same."""
    widths = [(0, 0)] * (array.ndim - 2)
    widths += [(0, 0 if n == 1 else max(0, to - n)) for n, to in zip(array.shape[-2:], (T, S), strict=True)]
    return jnp.pad(array, widths, mode="edge") if any(after for _, after in widths) else array


def take(array: Array, start: tuple[Index, ...], size: tuple[int, ...]) -> Array:
    """Return the tile of an array that begins at `start`."""
    size = tuple(1 if n == 1 else length for n, length in zip(array.shape, size, strict=True))
    return lax.dynamic_slice(array, _with_zeros(array, start), size)


def _with_zeros(array: Array, start: tuple[Index, ...]) -> tuple[Index, ...]:
    """Return `start` with 0 in axes of 1, which stand for all entries."""
    return tuple(0 if n == 1 else index for n, index in zip(array.shape, start, strict=True))


def put(array: Array, tile: Array, start: tuple[Index, ...]) -> Array:
    """Return the array with a tile written over it."""
    return lax.dynamic_update_slice(array, tile, _with_zeros(array, start))


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


def full(shape: tuple[int, ...], value: float | int, like: Array, dtype: DTypeLike) -> Array:
    """Fill an array for a loop to carry; it varies over the same mesh axes as `like`."""
    return vary_alike((jnp.full(shape, value, dtype), like))[0]


def vary_alike(arrays: PyTree) -> PyTree:
    """Inside `jax.shard_map`, let all arrays vary over the mesh axes over which any of them does.

    JAX has no stable name for what an array varies over, but a `where` varies over all axes of its operands.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return arrays
    firsts = jnp.stack([leaf.ravel()[0].astype(jnp.float32) for leaf in jax.tree.leaves(arrays)])
    condition = jnp.isnan(firsts).all()
    return jax.tree.map(lambda leaf: jnp.where(condition, leaf, leaf), arrays)


def _grouped(tile: Array, nk: int, ng: int) -> Array:
    """(B, nk * ng, ...) -> (B, nk, ng, ...)."""
    return tile.reshape(*tile.shape[:-3], nk, ng, *tile.shape[-2:])
