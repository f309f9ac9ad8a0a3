"""How attention is cut into blocks: how large they are, which of them hold unmasked entries, and where each begins.

The outer loop runs over blocks of examples and heads and, in the forward pass, query blocks; its inner loop runs over
the key blocks that a query block attends to. The backward pass has key blocks outside and query blocks inside.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxattn.kernels.call import AttentionCall

Index = Any  # an int, or a traced integer

# A product of two blocks this long runs near a CPU's full rate, measured; smaller ones run on a single core.
SIDE = 512
# The scores of one block in all heads together: 2 MB in float32 stay in a CPU's caches, and accelerators want more.
SCORES_CPU, SCORES_ACCELERATOR = 2**19, 2**25


class Heads(NamedTuple):
    """A block of examples and heads (B, K, G): where it begins, its size, its number, and the number of all heads G."""

    start: tuple[Index, ...]
    size: tuple[int, ...]
    number: tuple[Index, ...]
    group: int

    @property
    def first_query_head(self) -> Index:
        """The first query head; the block's query heads are neighbours."""
        return self.start[-2] * self.group + self.start[-1]


class Blocks(NamedTuple):
    """The block sizes, and how many blocks there are."""

    heads: tuple[int, ...]  # examples in each batch axis, KV heads, query heads of a KV head
    head_counts: tuple[int, ...]
    outer: int
    outer_count: int
    inner: int
    inner_count: int

    @property
    def turns(self) -> int:
        """How many turns the outer loop takes."""
        return math.prod(self.head_counts) * self.outer_count

    def place(self, turn: Index) -> tuple[Heads, Index]:
        """Return the heads of one turn of the outer loop, and the number of its outer block."""
        *number, outer = _unravel(turn, (*self.head_counts, self.outer_count))
        start = tuple(block * size for block, size in zip(number, self.heads, strict=True))
        return Heads(start, self.heads, tuple(number), self.heads[-1] * self.head_counts[-1]), outer


class Plan(NamedTuple):
    """Which inner blocks each outer block computes; in its arrays, an axis of 1 stands for all entries of that axis."""

    start: Array  # (outer,): the first token of inner block 0
    number: Array  # (B, K, G, outer): how many inner blocks hold unmasked entries
    order: Array  # (B, K, G, outer, inner): their numbers first, in order
    inner: int  # the size of an inner block

    def blocks_of(self, heads: Heads, outer: Index) -> tuple[Array, Callable[[Index], Array]]:
        """Return how many inner blocks an outer block has, and a function that gives the first token of each."""
        start = take(self.start, (outer,), (1,)).reshape(())
        count = take(self.number, (*heads.number, outer), (1,) * self.number.ndim).reshape(())
        order = take(self.order, (*heads.number, outer, 0), (*(1,) * self.number.ndim, self.order.shape[-1])).ravel()
        return count, lambda turn: start + self.inner * order[turn]


def choose_blocks(call: AttentionCall, outer: int, inner: int, width: int | None) -> Blocks:
    """Choose block sizes for so many outer and inner tokens; `width` bounds the inner tokens of an outer one.

    Heads are cut into blocks where one device computes all of them. Where the compiler shards the call over devices,
    a block spans all examples and heads: then each device works on its own, and no array is gathered for a slice.
    """
    _, _, H, K = call.sizes
    shape = (*call.batch, K, H // K)
    on_cpu = jax.default_backend() == "cpu"
    limit = SCORES_CPU if on_cpu else SCORES_ACCELERATOR
    if on_cpu and on_one_device():
        side = SIDE if width is None else min((SIDE, SIDE // 2), key=lambda side: -(-(width - 1 + side) // SIDE))
        block_outer, block_inner = _equal_parts(outer, side), _equal_parts(inner, SIDE)
        # Blocks of short sequences measured faster at half of the limit.
        fitting = (limit if max(block_outer, block_inner) > SIDE // 2 else limit / 2) / (block_outer * block_inner)
        heads = _cut_heads(shape, fitting)
    else:
        fitting = SCORES_ACCELERATOR * jax.device_count() / max(1, math.prod(shape))
        side = min(SIDE, max(SIDE // 8, 2 ** int(math.log2(max(1, fitting)) / 2)))
        block_outer, block_inner, heads = _equal_parts(outer, side), _equal_parts(inner, side), shape
    counts = tuple(n // block for n, block in zip(shape, heads, strict=True))
    return Blocks(heads, counts, block_outer, -(-outer // block_outer), block_inner, -(-inner // block_inner))


def on_one_device() -> bool:
    """Return whether no compiler shards this program: there is one device, or `shard_map` has all mesh axes."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() == 1 or (bool(mesh.axis_names) and set(mesh.manual_axes) == set(mesh.axis_names))


def _cut_heads(shape: tuple[int, ...], fitting: float) -> tuple[int, ...]:
    """Choose how many of each axis fit into a block, last axis first; an axis is cut if those after it are whole."""
    heads: list[int] = []
    for n in reversed(shape):
        whole = all(block == size for block, size in zip(heads, reversed(shape), strict=False))
        divisors = [d for d in range(1, n + 1) if n % d == 0]
        heads.append(min(divisors, key=lambda d: abs(math.log(d / max(fitting, 1)))) if whole else 1)
        fitting /= heads[-1]
    return tuple(reversed(heads))


def _equal_parts(length: int, most: int) -> int:
    """Cut a length into equal blocks of at most `most`, rounded up to 16 for the vector registers."""
    return -(-length // (16 * -(-length // most))) * 16


def _unravel(index: Index, shape: tuple[int, ...]) -> list[Index]:
    """Like `jnp.unravel_index`, but an axis of 1 gives a plain 0, which the compiler need not compute."""
    places: list[Index] = []
    for size in reversed(shape):
        places.append(index % size if size > 1 else 0)
        index = index // size if size > 1 else index
    return places[::-1]


def plan_blocks(call: AttentionCall, blocks: Blocks, outer_is_query: bool) -> Plan:
    """Find the inner blocks in which any entry is unmasked. All others are skipped.

    What is skipped depends on the mask, but the grid of an outer block does not: so neither does the order of its sums.
    """
    start = _grid_starts(call, blocks, outer_is_query)
    numbers = jnp.arange(blocks.inner_count)
    if call.mask is None:
        shape = (1,) * len(blocks.heads) + (blocks.outer_count,)
        order = jnp.broadcast_to(numbers, (*shape, numbers.size))
        return Plan(jnp.asarray(start), jnp.full(shape, blocks.inner_count), order, blocks.inner)
    grain = blocks.inner // 4
    grains = _unmasked_grains(call, blocks, outer_is_query)  # (B, K, G, outer, grains)
    # Inner block j of outer block i covers four grains from start[i] + 4 j on.
    places = start[:, None, None] // grain + np.arange(blocks.inner_count * 4).reshape(-1, 4)  # (outer, inner, 4)
    rows = np.arange(blocks.outer_count)[:, None, None]
    unmasked = grains.at[..., rows, places].get(mode="fill", fill_value=False).any(-1)  # (B, K, G, outer, inner)
    order = jnp.argsort(~unmasked, axis=-1, stable=True)
    return Plan(jnp.asarray(start), unmasked.sum(-1), order, blocks.inner)


def padded_length(call: AttentionCall, blocks: Blocks, outer_is_query: bool) -> int:
    """Return the length that the inner tokens are padded to, so that no grid ends beyond it."""
    start, length = _grid_starts(call, blocks, outer_is_query), call.sizes[1 if outer_is_query else 0]
    ends = start + np.maximum(0, -(-(length - start) // blocks.inner)) * blocks.inner
    return max(blocks.inner_count * blocks.inner, int(ends[start < length].max(initial=0)))


def _grid_starts(call: AttentionCall, blocks: Blocks, outer_is_query: bool) -> np.ndarray:
    """Return where the grid of inner blocks begins for each outer block: where its band begins, or at token 0."""
    first = (call.band if outer_is_query else call.band.transposed).first
    if first is None:
        return np.zeros(blocks.outer_count, int)
    grain = blocks.inner // 4
    return np.maximum((np.arange(blocks.outer_count) * blocks.outer + first) // grain * grain, 0)


def _unmasked_grains(call: AttentionCall, blocks: Blocks, outer_is_query: bool) -> Array:
    """Return which quarters of inner blocks `(B, K, G, outer, grains)` hold unmasked entries; 1 where all are alike."""
    T, S, H, K = call.sizes
    outer, inner = (blocks.outer_count, blocks.outer), (blocks.inner_count * 4, blocks.inner // 4)
    (rows, bq), (columns, bk) = (outer, inner) if outer_is_query else (inner, outer)
    queries, keys = jnp.arange(rows * bq).reshape(rows, bq, 1, 1), jnp.arange(columns * bk).reshape(1, 1, columns, bk)

    def cut(array: Array) -> Array:
        array = pad_entries(array, rows * bq, columns * bk)
        down, across = (1, 1) if array.shape[-2] == 1 else (rows, bq), (1, 1) if array.shape[-1] == 1 else (columns, bk)
        return array.reshape(*array.shape[:-2], *down, *across)

    assert call.mask is not None
    unmasked = jax.tree.map(cut, call.mask).block_mask(queries, keys)
    # Blocks of padding alone are masked.
    real = (jnp.arange(rows) * bq < T)[:, None] & (jnp.arange(columns) * bk < S)[None, :]
    unmasked = unmasked & real.reshape((1,) * (unmasked.ndim - 2) + real.shape)
    unmasked = unmasked if outer_is_query else jnp.swapaxes(unmasked, -2, -1)
    unmasked = split_heads(unmasked, H, K)
    for axis, block in enumerate(blocks.heads):
        if unmasked.shape[axis] > 1:
            parts = (*unmasked.shape[:axis], -1, block, *unmasked.shape[axis + 1 :])
            unmasked = unmasked.reshape(parts).any(axis + 1)
    return unmasked


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
    size = tuple(min(pair) for pair in zip(array.shape, size, strict=True))
    return lax.dynamic_slice(array, inside(array, start), size)


def inside(array: Array, start: tuple[Index, ...]) -> tuple[Index, ...]:
    """Return `start` with 0 for axes of 1, which stand for all entries."""
    return tuple(0 if n == 1 else index for n, index in zip(array.shape, start, strict=True))
