"""Exact attention in memory that grows linearly with the tokens: block by block, no (T, S) array exists.

A softmax can be summed in parts. For each query keep the sum of its exponentials, their weighted values, and the
largest score so far; each key block adds to the sums, scaled down when the largest score grows. One division at the end
gives the context (Milakov & Gimelshein 2018, "Online normalizer calculation for softmax"; Rabe & Staats 2021,
"Self-attention Does Not Need O(n²) Memory").

Scores are in base 2, with log2(e) in the scale, because exp2 is cheaper than exp. Each row is shifted by its own
largest score, so for given shapes and band an output's bits depend on nothing but what its query attends to. (A NaN or
infinite value spreads even where it is masked, because 0 · NaN is NaN, as in every implementation that multiplies
matrices.)
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxattn.kernels.blocks import Blocks, HeadBlock, Index, choose_blocks
from jaxattn.kernels.blockwise_backward import backward
from jaxattn.kernels.call import AttentionCall
from jaxattn.kernels.exp2 import LOG2_E, exp2
from jaxattn.kernels.plan import Plan, plan_blocks
from jaxattn.kernels.tiles import (
    Entries,
    full,
    key_columns,
    key_rows,
    pad_tokens,
    positions,
    put,
    query_rows,
)

__all__ = ["backward", "forward", "unsupported"]


def unsupported(call: AttentionCall) -> str | None:
    """Return why this kernel cannot compute the call, or None."""
    return "does not store the weights that return_weights asks for" if call.return_weights else None


def forward(call: AttentionCall) -> tuple[Array, Array]:
    """Return the context `(B, T, H, D_v)` and the base-2 logsumexp of each query's scores `(B, H, T)`.

    Where a query may attend to nothing, the context is 0 and the logsumexp is inf, so that all weights are 0.
    """
    T, S, H, _ = call.sizes
    blocks = choose_blocks(call, outer=T, inner=S)
    queries, keys = blocks.outer_count * blocks.outer, blocks.inner_count * blocks.inner  # padded to whole blocks
    operands = _Operands(
        query=pad_tokens(call.query.astype(call.wide), queries, axis=-3),
        key_t=jnp.moveaxis(pad_tokens(call.key.astype(call.wide), keys, axis=-3), -3, -1),  # (B, K, D, S)
        value=pad_tokens(call.value.astype(call.wide), keys, axis=-3),
        entries=Entries.of(call, queries, keys),
        plan=plan_blocks(call, blocks, outer_is_query=True),
    )
    context = full((*call.batch, queries, H, call.value.shape[-1]), 0, operands.query)
    lse = full((*call.batch, H, queries), 0, operands.query)
    with call.matmul_precision():
        body = functools.partial(_attend_query_block, call, blocks, operands)
        context, lse = lax.fori_loop(0, blocks.steps, body, (context, lse))
    return context[..., :T, :, :].astype(call.value.dtype), lse[..., :T]


class _Operands(NamedTuple):
    """Arrays padded to whole blocks."""

    query: Array  # (B, T, H, D)
    key_t: Array  # (B, K, D, S)
    value: Array  # (B, S, K, D_v)
    entries: Entries
    plan: Plan


def _attend_query_block(
    call: AttentionCall, blocks: Blocks, operands: _Operands, step: Index, results: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Compute the context of one query block, and write it into the results."""
    heads, row = blocks.at(step)
    first_query, bq, bk = row * blocks.outer, blocks.outer, blocks.inner
    scale = jnp.asarray(call.scale * LOG2_E, call.wide)
    query = query_rows(operands.query, heads, first_query, bq) * scale  # (B, K, G, bq, D)
    count, first_key_of = operands.plan.blocks_of(heads, row)

    def add_key_block(inner_step: Index, state: Any) -> Any:
        total, context, largest = state
        first_key = first_key_of(inner_step)
        key_t = key_columns(operands.key_t, heads, first_key, bk)  # (B, K, 1, D, bk)
        entries = operands.entries.tile(heads, (first_query, first_key), (bq, bk))
        scores = jnp.matmul(query, key_t)  # (B, K, G, bq, bk)
        scores = entries.masked(scores, positions(first_query, bq)[:, None], positions(first_key, bk)[None, :])
        larger = jnp.maximum(largest, scores.max(-1))
        shrink = exp2(largest - larger)
        weights = exp2(scores - larger[..., None])
        kept = entries.dropped(weights, call.dropout_rate)
        value = key_rows(operands.value, heads, first_key, bk)  # (B, K, 1, bk, D_v)
        return total * shrink + weights.sum(-1), context * shrink[..., None] + jnp.matmul(kept, value), larger

    rows = (*blocks.heads, bq)
    zeros = full(rows, 0, operands.query), full((*rows, call.value.shape[-1]), 0, operands.query)
    lowest = full(rows, float(jnp.finfo(call.wide).min), operands.query)
    total, context, largest = lax.fori_loop(0, count, add_key_block, (*zeros, lowest))
    context = context / jnp.where(total > 0, total, 1)[..., None]
    lse = jnp.where(total > 0, jnp.log2(total) + largest, jnp.inf)
    return _write(results, heads, first_query, context, lse)


def _write(
    results: tuple[Array, Array], heads: HeadBlock, first_query: Index, context: Array, lse: Array
) -> tuple[Array, Array]:
    """Write a query block's context `(B, K, G, bq, D_v)` and logsumexp `(B, K, G, bq)` into the results."""
    *batch, _, _ = heads.start
    context = context.reshape(*context.shape[:-4], -1, *context.shape[-2:]).swapaxes(-3, -2)  # (B, bq, H, D_v)
    lse = lse.reshape(*lse.shape[:-3], -1, lse.shape[-1])  # (B, H, bq)
    return (
        put(results[0], context, (*batch, first_query, heads.first_query_head, 0)),
        put(results[1], lse, (*batch, heads.first_query_head, first_query)),
    )
