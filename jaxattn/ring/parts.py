"""The part of a call that belongs to some chunks of queries and one chunk of keys.

On each device, arrays are arranged in chunks: they have one more axis in front, of the device's chunks of queries (or
of keys, in what travels), and 1 where all chunks share the array. A part is a call of any kernel with that axis as one
more batch axis; masks and biases count its tokens from 0.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxattn import masks
from jaxattn.kernels.call import AttentionCall, Gradients
from jaxattn.masks import Band, Mask
from jaxattn.ring.order import Hops, Layout, arrange, zigzag_order


class Tokens(NamedTuple):
    """Which token axes an array has whose last two axes are queries and keys."""

    queries: bool
    keys: bool

    @classmethod
    def of(cls, array: Array) -> "Tokens":
        """Return the axes that are not 1."""
        return cls(array.shape[-2] > 1, array.shape[-1] > 1)

    @property
    def travel(self) -> bool:
        """Whether the array belongs to the keys alone."""
        return self.keys and not self.queries


class Shards(NamedTuple):
    """How a call is cut: what is known at compile time."""

    axis: str  # of the mesh
    layout: Layout  # of the queries
    key_layout: Layout
    hops: Hops
    T: int
    S: int
    is_natural: bool  # the order of the caller's arrays
    mask: tuple[Tokens, ...]  # of each array in the mask
    bias: Tokens
    gathers: bool  # whether each device gathers all keys, in natural order

    @property
    def natural_keys(self) -> np.ndarray:
        """Where the caller's zig-zag order has the keys in natural order."""
        return np.argsort(zigzag_order(self.S, self.layout.devices))

    def first_keys(self, device: Any) -> tuple[Array, Array]:
        """Return where each of a device's chunks of keys begins, (chunks,): its position, and its column.

        The column is the place in arrays that hold all keys in the order of the caller.
        """
        chunks = jnp.stack([jnp.asarray(chunk, jnp.int32) for chunk in self.key_layout.chunks_of(device)])
        stored = device * self.key_layout.chunks + jnp.arange(self.key_layout.chunks, dtype=jnp.int32)
        length = self.S // self.key_layout.total
        return chunks * length, (chunks if self.is_natural else stored) * length

    def first_queries(self, device: Any) -> Array:
        """Return the position of the first query of each of a device's chunks, (chunks,)."""
        chunks = jnp.stack([jnp.asarray(chunk, jnp.int32) for chunk in self.layout.chunks_of(device)])
        return chunks * (self.T // self.layout.total)


class Travellers(NamedTuple):
    """What belongs to the keys of one device, each array with an axis of chunks in front."""

    key: Array  # (chunks, B, S, K, D)
    value: Array  # (chunks, B, S, K, D_v)
    mask: tuple[Array, ...]  # (chunks, B, H, 1, S)
    column_bits: Array | None  # (chunks, B, H, 1, S)


def arranged(shards: Shards, call: AttentionCall) -> AttentionCall:
    """Arrange a device's arrays in chunks."""

    def cut(array: Array, axis: int, is_natural: bool = shards.is_natural, layout: Layout = shards.layout) -> Array:
        return arrange(array, layout, shards.axis, axis % array.ndim, is_natural)

    def cut_entries(array: Array, tokens: Tokens) -> Array:
        """Cut (B, H, T, all S) by queries."""
        array = cut(array, -2) if tokens.queries else array[None]
        is_reordered = tokens.keys and not shards.is_natural and shards.gathers
        return jnp.take(array, shards.natural_keys, array.ndim - 1) if is_reordered else array

    cut_keys = functools.partial(cut, layout=shards.key_layout)
    leaves, structure = jax.tree.flatten(call.mask)
    leaves = [
        cut_keys(leaf, -1) if tokens.travel else cut_entries(leaf, tokens)
        for leaf, tokens in zip(leaves, shards.mask, strict=True)
    ]
    bias, bits = call.bias, (call.row_bits, call.column_bits)
    if bias is not None:
        bias = cut_entries(bias, shards.bias)
    if call.row_bits is not None:  # drawn by position
        bits = cut(call.row_bits, -2, True), cut_keys(call.column_bits, -1, True)
    return dataclasses.replace(
        call,
        query=cut(call.query, -3),
        key=cut_keys(call.key, -3),
        value=cut_keys(call.value, -3),
        mask=jax.tree.unflatten(structure, leaves),
        bias=bias,
        row_bits=bits[0],
        column_bits=bits[1],
        diagonals=None if call.diagonals is None else call.diagonals[None],
        sinks=None if call.sinks is None else call.sinks[None],
    )


def travellers_of(shards: Shards, call: AttentionCall) -> Travellers:
    """Return what travels with the keys of an arranged call."""
    leaves = zip(jax.tree.leaves(call.mask), shards.mask, strict=True)
    return Travellers(call.key, call.value, tuple(leaf for leaf, tokens in leaves if tokens.travel), call.column_bits)


def part(
    shards: Shards, call: AttentionCall, keys: Travellers, first_query: Array, first_key: Any, column: Any
) -> AttentionCall:
    """Return the call of a device's queries and one chunk of keys.

    `keys` has no axis of chunks. `first_query` `(chunks,)` and `first_key` are positions; `column` is where these keys
    begin in arrays that hold all of them.
    """
    keys = jax.tree.map(lambda array: array[None], keys)  # all chunks of queries share them
    S = keys.key.shape[-3]

    def columns(array: Array | None) -> Array | None:
        if array is None or array.shape[-1] == 1:
            return array
        return lax.dynamic_slice_in_dim(array, column, S, -1)

    leaves, structure = jax.tree.flatten(call.mask)
    arrived = iter(keys.mask)
    leaves = [
        next(arrived) if tokens.travel else columns(leaf) for leaf, tokens in zip(leaves, shards.mask, strict=True)
    ]
    mask = jax.tree.unflatten(structure, leaves)
    if mask is not None:
        T = call.query.shape[-3]
        mask = moved(mask, first_query.reshape(-1, *[1] * (call.query.ndim - 1)), first_key, T, S)
    return dataclasses.replace(
        call,
        key=keys.key,
        value=keys.value,
        mask=mask,
        bias=columns(call.bias),
        column_bits=keys.column_bits,
        diagonals=None if call.diagonals is None else _diagonals(shards, call, first_query, first_key, S),
        sinks=None,
        band=Band(),
        is_partial=True,
        mapped_axes=call.mapped_axes + 1,
    )


def moved(mask: Mask, first_query: Array, first_key: Any, T: int, S: int) -> Mask:
    """Count the positions of queries and keys in an expanded mask from 0."""
    match mask:
        case masks.And() | masks.Or():
            both = (moved(one, first_query, first_key, T, S) for one in (mask.first, mask.second))
            return type(mask)(*both)
        case masks.Causal() | masks.SlidingWindow():
            return mask.shifted(first_query - first_key)
        case masks.Lengths():
            return type(mask)(mask.lengths - first_key)
        case masks.Chunked(size=size):
            # The chunks of keys that do not begin at a multiple of the size are segments.
            size, ones = min(size, masks.positions.FARTHEST), (1,) * (first_query.ndim - 2)
            queries = jnp.arange(T, dtype=jnp.int32).reshape(*ones, T, 1) + first_query + mask.offset
            keys = jnp.arange(S, dtype=jnp.int32).reshape(*ones, 1, S) + first_key
            return masks.Segments(queries // size, keys // size)
        case masks.Segments() | masks.ArrayMask():
            return mask
    raise TypeError(
        f"mask is a {type(mask).__name__}, whose positions ring_attention does not know: write mask.array(T, S)"
    )


def _diagonals(shards: Shards, call: AttentionCall, first_query: Array, first_key: Any, S: int) -> Array:
    """(1, B, H, 1, all diagonals) -> (chunks, B, H, 1, T + S - 1): those of each chunk of queries."""
    T = call.query.shape[-3]
    starts = _first_diagonals(shards, first_query, first_key, T)
    return jnp.concatenate([lax.dynamic_slice_in_dim(call.diagonals, start, T + S - 1, -1) for start in starts])


def _first_diagonals(shards: Shards, first_query: Array, first_key: Any, T: int) -> list[Array]:
    """Return the first diagonal of each chunk of queries."""
    return [first_key - first + shards.T - T for first in first_query]


class LocalSums(NamedTuple):
    """Gradients of what stays on a device, summed over parts."""

    query: Array  # (chunks, B, T, H, D)
    bias: Array | None
    diagonals: Array | None  # (1, B, H, 1, all diagonals)

    @classmethod
    def zeros(cls, call: AttentionCall) -> "LocalSums":
        """Return the gradients before any part."""
        query, bias, diagonals = (
            jax.tree.map(lambda array: jnp.zeros(array.shape, call.wide), array)
            for array in (call.query, call.bias, call.diagonals)
        )
        return cls(query, bias, diagonals)

    def add(
        self, shards: Shards, part: AttentionCall, gradients: Gradients, first_query: Array, first_key: Any, column: Any
    ) -> "LocalSums":
        """Add the gradients of one part, whose chunks of queries are all apart."""
        bias, diagonals = self.bias, self.diagonals
        if bias is not None and gradients.bias is not None:
            of_bias = gradients.bias if bias.shape[0] > 1 else gradients.bias.sum(0, keepdims=True)
            start = 0 if bias.shape[-1] == 1 else column
            bias = _added(bias, of_bias.astype(bias.dtype), start)
        if diagonals is not None and gradients.diagonals is not None:
            starts = _first_diagonals(shards, first_query, first_key, part.query.shape[-3])
            for start, of_chunk in zip(starts, gradients.diagonals, strict=True):
                diagonals = _added(diagonals, of_chunk[None].astype(diagonals.dtype), start)
        return LocalSums(self.query + gradients.query, bias, diagonals)


def _added(total: Array, addend: Array, start: Any) -> Array:
    """Add to the last axis, from `start` on."""
    there = lax.dynamic_slice_in_dim(total, start, addend.shape[-1], -1)
    return lax.dynamic_update_slice_in_dim(total, there + addend, start, -1)
