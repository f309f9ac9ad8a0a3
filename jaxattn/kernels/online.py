"""The online softmax: sums over the key blocks so far, which a query block carries along (see `blockwise.py`)."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxattn.kernels.blocks import Blocks, HeadBlock, Index
from jaxattn.kernels.call import AttentionCall
from jaxattn.kernels.softmax import LogSumExp, exponentials
from jaxattn.kernels.tiles import full, put


class Sums(NamedTuple):
    """Of one query block: the sum of the exponentials, their weighted values, and the largest score so far."""

    total: Array  # (B, K, G, bq)
    context: Array  # (B, K, G, bq, D_v)
    largest: Array  # (B, K, G, bq)

    @classmethod
    def empty(cls, call: AttentionCall, blocks: Blocks, like: Array) -> "Sums":
        """Return the sums before the first key block."""
        rows = (*blocks.heads, blocks.outer)
        total, largest = (full(rows, value, like, call.wide) for value in (0, float(jnp.finfo(call.wide).min)))
        return cls(total, full((*rows, call.value.shape[-1]), 0, like, call.wide), largest)

    def add(self, call: AttentionCall, scores: Array, times_value: Callable[[Array], Array]) -> "Sums":
        """Add a key block by its scores `(B, K, G, bq, bk)` and a function that weighs its values."""
        largest = jnp.maximum(self.largest, scores.max(-1))
        shrink = exponentials(call, self.largest, largest)
        weights = exponentials(call, scores, largest[..., None])
        context = self.context * shrink[..., None] + times_value(weights)
        return Sums(self.total * shrink + weights.sum(-1), context, largest)


class Results(NamedTuple):
    """Of all query blocks."""

    context: Array  # (B, T, H, D_v)
    total: Array  # (B, H, T)
    largest: Array  # (B, H, T)

    @classmethod
    def empty(cls, call: AttentionCall, queries: int, like: Array) -> "Results":
        """Return arrays for so many queries, to be written over."""
        H = call.sizes[2]
        context = full((*call.batch, queries, H, call.value.shape[-1]), 0, like, call.result_type(call.value))
        return cls(context, *(full((*call.batch, H, queries), 0, like, call.wide) for _ in range(2)))

    def write(self, heads: HeadBlock, first_query: Index, sums: Sums) -> "Results":
        """Write one query block over the arrays."""
        *batch, _, _ = heads.start
        # The largest score alone adds exp2(0) = 1, so that only a query without keys has a smaller sum, 0.
        context = sums.context / jnp.maximum(sums.total, 1)[..., None]
        context = context.reshape(*context.shape[:-4], -1, *context.shape[-2:]).swapaxes(-3, -2)  # (B, bq, H, D_v)
        # (B, K, G, bq) -> (B, H, bq)
        rows = [array.reshape(*array.shape[:-3], -1, array.shape[-1]) for array in (sums.total, sums.largest)]
        start = (*batch, heads.first_query_head, first_query)
        return Results(
            put(self.context, context.astype(self.context.dtype), (*batch, first_query, heads.first_query_head, 0)),
            put(self.total, rows[0], start),
            put(self.largest, rows[1], start),
        )

    def first(self, T: int) -> tuple[Array, LogSumExp]:
        """Return the context and the logsumexp of the first T queries."""
        return self.context[..., :T, :, :], LogSumExp.of(self.largest[..., :T], self.total[..., :T])
