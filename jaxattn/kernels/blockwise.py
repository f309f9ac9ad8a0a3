"""Exact attention in memory that grows linearly with the tokens: block by block, no (T, S) array exists.

A softmax can be summed in parts. For each query keep the sum of its exponentials, their weighted values, and the
largest score so far; each key block adds to the sums, scaled down when the largest score grows. One division at the end
gives the context (Milakov & Gimelshein 2018, "Online normalizer calculation for softmax"; Rabe & Staats 2021,
"Self-attention Does Not Need O(n²) Memory").

Exponentials are in base 2, because exp2 is cheaper than exp (`softmax.py`). Each row is shifted by its own largest
score, so for given shapes and band an output's bits depend on nothing but what its query attends to. (A NaN or
infinite value spreads even where it is masked, because 0 · NaN is NaN, as in every implementation that multiplies
matrices.)
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxattn.kernels import few_queries
from jaxattn.kernels.blocks import Blocks, Index, choose_blocks
from jaxattn.kernels.blockwise_backward import backward
from jaxattn.kernels.call import AttentionCall
from jaxattn.kernels.online import Results, Sums
from jaxattn.kernels.plan import Plan, plan_blocks
from jaxattn.kernels.softmax import LogSumExp, as_factor, product, signed_query, with_sinks
from jaxattn.kernels.tiles import Entries, key_columns, key_rows, pad_tokens, positions, query_rows

__all__ = ["backward", "forward", "unsupported"]


def unsupported(call: AttentionCall) -> str | None:
    """Return why this kernel cannot compute the call, or None."""
    if call.return_weights:
        return "does not store the weights that return_weights asks for"
    if not all(isinstance(n, int) for n in call.sizes):
        return "needs numbers of tokens and heads that are known, which an export leaves open here"
    return None


def forward(call: AttentionCall) -> tuple[Array, LogSumExp]:
    """Return the context `(B, T, H, D_v)` and the logsumexp of each query's scores `(B, H, T)`.

    Where a query may attend to nothing, the context is 0 and the logsumexp is inf, so that all weights are 0.
    """
    if few_queries.unsupported(call) is None:
        return with_sinks(call, *few_queries.forward(call))
    T, S, _, _ = call.sizes
    blocks = choose_blocks(call, outer=T, inner=S)
    queries, keys = blocks.outer_count * blocks.outer, blocks.inner_count * blocks.inner  # padded to whole blocks
    operands = _Operands(
        query=pad_tokens(signed_query(call), queries, axis=-3),
        key_t=jnp.moveaxis(pad_tokens(call.key, keys, axis=-3), -3, -1),  # (B, K, D, S)
        value=pad_tokens(call.value, keys, axis=-3),
        entries=Entries.of(call, queries, keys),
        plan=plan_blocks(call, blocks, outer_is_query=True),
    )
    with call.matmul_precision():
        body = functools.partial(_attend_query_block, call, blocks, operands)
        results = lax.fori_loop(0, blocks.steps, body, Results.empty(call, queries, like=operands.query))
    return with_sinks(call, *results.first(T))


class _Operands(NamedTuple):
    """Arrays padded to whole blocks."""

    query: Array  # (B, T, H, D)
    key_t: Array  # (B, K, D, S)
    value: Array  # (B, S, K, D_v)
    entries: Entries
    plan: Plan


def _attend_query_block(
    call: AttentionCall, blocks: Blocks, operands: _Operands, step: Index, results: Results
) -> Results:
    """Compute the context of one query block, and write it into the results."""
    heads, row = blocks.at(step)
    first_query, bq, bk = row * blocks.outer, blocks.outer, blocks.inner
    query = query_rows(operands.query, heads, first_query, bq)  # (B, K, G, bq, D)
    count, first_key_of = operands.plan.blocks_of(heads, row)

    def add_key_block(inner_step: Index, sums: Sums) -> Sums:
        first_key = first_key_of(inner_step)
        key_t = key_columns(operands.key_t, heads, first_key, bk)  # (B, K, 1, D, bk)
        value = key_rows(operands.value, heads, first_key, bk)  # (B, K, 1, bk, D_v)
        entries = operands.entries.tile(heads, (first_query, first_key), (bq, bk))
        scores = product(call, query, key_t)  # (B, K, G, bq, bk)
        places = positions(first_query, bq)[:, None], positions(first_key, bk)[None, :]
        scores = entries.masked(call, scores, *places)
        dropped = functools.partial(entries.dropped, rate=call.dropout_rate)
        return sums.add(call, scores, lambda weights: product(call, as_factor(call, dropped(weights)), value))

    sums = lax.fori_loop(0, count, add_key_block, Sums.empty(call, blocks, like=operands.query))
    return results.write(heads, first_query, sums)
