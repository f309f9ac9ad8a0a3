"""Which blocks are skipped: those in which the mask leaves no entry.

A mask is tested in grains, each a quarter of an inner block, so that the inner blocks of an outer block can begin close
to its band. For each outer block, the inner blocks are tested one by one, so masked blocks are skipped inside the range
of a window with sinks or of packed documents too. The test is exact for positions (`Causal`, `SlidingWindow`,
`Chunked`, `Lengths`, `Prefix`) and boolean arrays. For `Segments` it compares the ranges of ids, which is exact where
ids are sorted. `&` and `|` combine the answers of their parts, so a block may be computed although every entry is
masked by one part or the other. A block is skipped only if it is masked in all examples and heads that are computed at
once.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn.kernels.blocks import Blocks, HeadBlock, Index
from jaxattn.kernels.call import AttentionCall
from jaxattn.kernels.tiles import pad_entries, split_heads, take


class Plan(NamedTuple):
    """Which inner blocks each outer block computes; in its arrays, an axis of 1 stands for all entries of that axis."""

    start: Array  # (outer,): the first token of inner block 0
    counts: Array  # (B, K, G, outer): how many inner blocks hold unmasked entries
    order: Array  # (B, K, G, outer, inner): first the indices of those blocks, in order
    inner: int  # the size of an inner block

    def blocks_of(self, heads: HeadBlock, outer: Index) -> tuple[Array, Callable[[Index], Array]]:
        """Return how many inner blocks an outer block has, and a function that gives the first token of each."""
        start = take(self.start, (outer,), (1,)).reshape(())
        count = take(self.counts, (*heads.place, outer), (1,) * self.counts.ndim).reshape(())
        order = take(self.order, (*heads.place, outer, 0), (*(1,) * self.counts.ndim, self.order.shape[-1])).ravel()
        return count, lambda step: start + self.inner * order[step]


def plan_blocks(call: AttentionCall, blocks: Blocks, outer_is_query: bool) -> Plan:
    """Find the inner blocks in which any entry is unmasked. All others are skipped.

    The inner blocks of an outer block lie on a grid that depends on shapes and on the mask's band alone, not on what is
    skipped. Therefore the order in which a row is summed does not depend on that either.
    """
    start = _grid_starts(call, blocks, outer_is_query)
    if call.mask is None:
        shape = (1,) * len(blocks.heads) + (blocks.outer_count,)
        order = jnp.broadcast_to(jnp.arange(blocks.inner_count), (*shape, blocks.inner_count))
        return Plan(jnp.asarray(start), jnp.full(shape, blocks.inner_count), order, blocks.inner)
    grain = blocks.inner // 4
    grains = _unmasked_grains(call, blocks, outer_is_query)  # (B, K, G, outer, grains)
    # Inner block j of outer block i covers four grains from start[i] + 4 j on.
    places = start[:, None, None] // grain + np.arange(blocks.inner_count * 4).reshape(-1, 4)  # (outer, inner, 4)
    rows = np.arange(blocks.outer_count)[:, None, None]
    unmasked = grains.at[..., rows, places].get(mode="fill", fill_value=False).any(-1)  # (B, K, G, outer, inner)
    order = jnp.argsort(~unmasked, axis=-1, stable=True)
    return Plan(jnp.asarray(start), unmasked.sum(-1), order, blocks.inner)


def _grid_starts(call: AttentionCall, blocks: Blocks, outer_is_query: bool) -> np.ndarray:
    """Return where the grid of inner blocks begins for each outer block: where its band begins, or at token 0."""
    band, length = (call.band, call.sizes[1]) if outer_is_query else (call.band.transposed, call.sizes[0])
    outer = np.arange(blocks.outer_count) * blocks.outer
    if band.first is None:
        return np.zeros_like(outer)
    grain = blocks.inner // 4
    start = np.maximum((outer + band.first) // grain * grain, 0)
    end = np.full_like(outer, length) if band.last is None else np.clip(outer + blocks.outer + band.last, start, length)
    # No grid ends beyond the padded tokens.
    blocks_needed = np.maximum(-(-(end - start) // blocks.inner), 0)
    return np.clip(start, 0, np.maximum((blocks.inner_count - blocks_needed) * blocks.inner, 0))


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
        if unmasked.shape[axis] != 1:
            parts = (*unmasked.shape[:axis], -1, block, *unmasked.shape[axis + 1 :])
            unmasked = unmasked.reshape(parts).any(axis + 1)
    return unmasked
