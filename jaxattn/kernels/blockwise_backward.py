"""The backward pass of blockwise attention: for each key block, a loop over the query blocks that attend to it.

The forward pass keeps the context O and the logsumexp of each query's scores; each block's weights are recomputed from
them. With P the weights, P' the weights after dropout and dO the gradient of the context (Dao et al. 2022,
"FlashAttention", appendix B.2):

    dV = P'ᵀ dO    dP = dropout(dO Vᵀ)    delta = rowsum(dO ∘ O)    dS = P ∘ (dP − delta)    dQ = dS K    dK = dSᵀ Q

Scores are transposed throughout, keys × queries. Then every product contracts the last axis of its first factor with
the second-to-last of its second, which is fastest.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec

from jaxattn.kernels.blocks import Blocks, HeadBlock, Index, choose_blocks
from jaxattn.kernels.call import AttentionCall, Gradients
from jaxattn.kernels.diagonals import sum_diagonals, unpad_diagonals
from jaxattn.kernels.plan import Plan, plan_blocks
from jaxattn.kernels.platforms import on_one_device
from jaxattn.kernels.softmax import (
    LogSumExp,
    as_factor,
    delta_of,
    product,
    signed_query,
    sinks_gradient,
    through_cap,
    weights_from,
)
from jaxattn.kernels.tiles import (
    Entries,
    add,
    full,
    key_columns,
    key_rows,
    pad_tokens,
    positions,
    query_columns,
    query_rows,
)


class _Operands(NamedTuple):
    """Arrays padded to whole blocks."""

    query_t: Array  # (B, H, D, T), with the sign of the scale, as in the forward pass
    query: Array  # (B, T, H, D)
    key: Array  # (B, S, K, D)
    key_t: Array  # (B, K, D, S)
    value: Array  # (B, S, K, D_v)
    gradient_t: Array  # (B, H, D_v, T)
    gradient: Array  # (B, T, H, D_v)
    lse: LogSumExp  # (B, H, 1, T)
    delta: Array  # (B, H, 1, T)
    entries: Entries
    plan: Plan


def backward(
    call: AttentionCall, context: Array, lse: LogSumExp, gradient: Array, lse_gradient: Array | None = None
) -> Gradients:
    """Return the gradients, from the results of the forward pass and their gradients."""
    T, S, _, _ = call.sizes
    blocks = choose_blocks(call, outer=S, inner=T)
    delta = delta_of(call, context, gradient, lse_gradient)
    operands = _pad(call, blocks, delta, lse, gradient)
    zeros = _zeros(call, operands)
    with call.matmul_precision():
        body = functools.partial(_add_key_block, call, blocks, operands)
        queries, key, value, bias, diagonals = lax.fori_loop(0, blocks.steps, body, zeros)
    query = jnp.moveaxis(queries, -1, -3)[..., :T, :, :]  # (B, T, H, D)
    scale = jnp.asarray(call.scale, call.wide)
    return Gradients(
        (query * scale).astype(call.result_type(call.query)),
        (key[..., :S, :, :] * scale).astype(call.result_type(call.key)),
        value[..., :S, :, :].astype(call.result_type(call.value)),
        None if bias is None or call.bias is None else _unpad_bias(bias, call),
        None if diagonals is None else unpad_diagonals(call, _join_heads(diagonals), blocks.inner_count * blocks.inner),
        sinks_gradient(call, context, lse, gradient, lse_gradient),
    )


def _pad(call: AttentionCall, blocks: Blocks, delta: Array, lse: LogSumExp, gradient: Array) -> _Operands:
    """Pad all arrays to whole blocks, and transpose those that are read by columns."""
    queries, keys = blocks.inner_count * blocks.inner, blocks.outer_count * blocks.outer  # padded to whole blocks
    gradient = pad_tokens(gradient, queries, axis=-3)
    key = pad_tokens(call.key, keys, axis=-3)
    # Padded queries have no weights, whatever their bias.
    widths = [(0, 0)] * delta.ndim + [(0, queries - delta.shape[-1])]
    log_total = jnp.pad(lse.log_total[..., None, :], widths, constant_values=jnp.inf)
    return _Operands(
        query_t=jnp.moveaxis(pad_tokens(signed_query(call), queries, axis=-3), -3, -1),
        query=pad_tokens(call.query, queries, axis=-3),
        key=key,
        key_t=jnp.moveaxis(key, -3, -1),
        value=pad_tokens(call.value, keys, axis=-3),
        gradient_t=jnp.moveaxis(gradient, -3, -1),
        gradient=gradient,
        lse=LogSumExp(pad_tokens(lse.largest, queries, axis=-1)[..., None, :], log_total),
        delta=pad_tokens(delta, queries, axis=-1)[..., None, :],
        entries=Entries.of(call, queries, keys),
        plan=plan_blocks(call, blocks, outer_is_query=False),
    )


def _zeros(call: AttentionCall, operands: _Operands) -> Any:
    """Return the gradients to add to: of queries `(B, H, D, T)`, key, value, bias `(B, K, G, T, S)` and diagonals."""
    arrays = [operands.query_t, operands.key, operands.value]
    zeros = [full((*call.batch, *array.shape[-3:]), 0, operands.query, call.wide) for array in arrays]
    # A bias that all examples share adds up, except over axes of `vmap`, which adds them up itself.
    mapped = call.mapped_axes
    entries = operands.entries
    biases = entries.bias, None if entries.diagonals is None else entries.diagonals.array
    return *zeros, *jax.tree.map(
        lambda bias: full((*call.batch[:mapped], *bias.shape[mapped:]), 0, bias, bias.dtype), biases
    )


def _add_key_block(call: AttentionCall, blocks: Blocks, operands: _Operands, step: Index, gradients: Any) -> Any:
    """Add what one key block contributes to the gradients."""
    heads, column = blocks.at(step)
    first_key, bk, bq = column * blocks.outer, blocks.outer, blocks.inner
    key, value = (key_rows(array, heads, first_key, bk) for array in (operands.key, operands.value))
    key_t = key_columns(operands.key_t, heads, first_key, bk)  # (B, K, 1, D, bk)
    count, first_query_of = operands.plan.blocks_of(heads, column)

    def add_query_block(inner_step: Index, state: Any) -> Any:
        of_key, of_value, of_queries, of_bias, of_diagonals = state
        first_query = first_query_of(inner_step)
        tile = functools.partial(query_columns, heads=heads, first=first_query, columns=bq)
        row_tile = functools.partial(query_rows, heads=heads, first=first_query, rows=bq)
        entries = operands.entries.tile(heads, (first_query, first_key), (bq, bk)).transposed()
        scores = product(call, key, tile(operands.query_t))  # (B, K, G, bk, bq)
        places = positions(first_query, bq)[None, :], positions(first_key, bk)[:, None]
        weights = weights_from(call, entries.masked(call, scores, *places), jax.tree.map(tile, operands.lse))
        kept = as_factor(call, entries.dropped(weights, call.dropout_rate))
        of_value += product(call, kept, row_tile(operands.gradient))
        of_weights = entries.dropped(product(call, value, tile(operands.gradient_t)), call.dropout_rate)
        of_logits = weights * (of_weights - tile(operands.delta))  # dSᵀ, (B, K, G, bk, bq)
        factor = as_factor(call, through_cap(call, scores, of_logits))
        of_key += product(call, factor, row_tile(operands.query))
        of_queries = _add_queries(of_queries, product(call, key_t, factor), heads, first_query)
        of_entries = of_logits.swapaxes(-2, -1)
        of_bias = _add_bias(of_bias, of_entries, (*heads.start, first_query, first_key))
        if operands.entries.diagonals is not None:
            lines = sum_diagonals(of_entries)  # (B, K, G, 1, bq + bk)
            first = operands.entries.diagonals.first((first_query, first_key), bq)
            of_diagonals = _add_bias(of_diagonals, lines, (*heads.start, 0, first))
        return of_key, of_value, of_queries, of_bias, of_diagonals

    of_queries, of_key, of_value, of_bias, of_diagonals = gradients
    zeros = [full((*blocks.heads, bk, array.shape[-1]), 0, operands.query, call.wide) for array in (key, value)]
    state = (*zeros, of_queries, of_bias, of_diagonals)
    *tiles, of_queries, of_bias, of_diagonals = lax.fori_loop(0, count, add_query_block, state)
    of_key, of_value = (
        _add_keys(call, *pair, heads, first_key) for pair in zip((of_key, of_value), tiles, strict=True)
    )
    return of_queries, of_key, of_value, of_bias, of_diagonals


def _add_queries(total: Array, tile: Array, heads: HeadBlock, first_query: Index) -> Array:
    """Add (B, K, G, D, bq) to (B, H, D, T)."""
    *batch, _, _ = heads.start
    tile = tile.reshape(*tile.shape[:-4], -1, *tile.shape[-2:])
    return add(total, tile, (*batch, heads.first_query_head, 0, first_query))


def _add_keys(call: AttentionCall, total: Array, tile: Array, heads: HeadBlock, first_key: Index) -> Array:
    """Add (B, K, G, bk, D) to (B, S, K, D): the gradients of a group's query heads add up."""
    *batch, k, _ = heads.start
    *_, nk, ng = heads.size
    if ng == 1 or on_one_device(call.platform):
        return add(total, tile.sum(-3).swapaxes(-3, -2), (*batch, first_key, k, 0))
    # Where devices share the heads of a group, a product with ones is reduced; a sum would be gathered over KV heads.
    ones = jnp.repeat(jnp.eye(nk, dtype=tile.dtype), ng, axis=0)
    tile = tile.reshape(*tile.shape[:-4], nk * ng, *tile.shape[-2:])
    tile = jnp.einsum("...hsd,hk->...skd", tile, ones, precision=lax.Precision.HIGHEST)
    if jax.sharding.get_abstract_mesh().axis_names:
        free = PartitionSpec.UNCONSTRAINED
        tile = lax.with_sharding_constraint(tile, PartitionSpec(*(free,) * (tile.ndim - 2), None, free))
    return add(total, tile, (*batch, first_key, k, 0))


def _add_bias(total: Array | None, tile: Array, start: tuple[Index, ...]) -> Array | None:
    """Add (B, K, G, bq, bk) to the gradient of the bias, summed over the axes in which the bias has 1."""
    if total is None:
        return None
    axes = tuple(axis for axis, n in enumerate(total.shape) if n == 1)
    return add(total, tile.sum(axes, keepdims=True).astype(total.dtype), start)


def _unpad_bias(gradient: Array, call: AttentionCall) -> Array:
    """(B, K, G, T, S), padded -> (B, H, T, S)."""
    assert call.bias is not None
    T, S = call.bias.shape[-2:]
    return _join_heads(gradient[..., :T, :S])


def _join_heads(array: Array) -> Array:
    """(B, K, G, ...) -> (B, H, ...)."""
    return array.reshape(*array.shape[:-4], -1, *array.shape[-2:])
