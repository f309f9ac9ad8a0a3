"""The backward pass: for each block of keys, a loop over the blocks of queries that see it; weights are computed anew.

With P the weights, P' what dropout leaves of them, and dO the gradient of the context:

    dV = P'ᵀ dO     dP = drop(dO Vᵀ)     dS = P ∘ (dP − rowsum(dO ∘ O))     dQ = dS K     dK = dSᵀ Q

(Dao et al. 2022, "FlashAttention", appendix B.2.) The scores are transposed throughout, keys × queries: then all five
products contract the last axis of one factor with the first of the other, and processors like that best.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxattn.fast.blocks import Blocks, Index, full, plan_visits, put, take, zero_padded
from jaxattn.fast.cells import Cells, Settings
from jaxattn.fast.exponential import power_of_two

LN_2 = 0.6931471805599453


def pull_back_blockwise(
    blocks: Blocks,
    settings: Settings,
    query: Array,
    key: Array,
    value: Array,
    cells: Cells,
    context: Array,
    log_sums: Array,
    gradient: Array,
) -> tuple[Array, Array, Array, Array | None]:
    """Return the gradients of query, key, value and bias, from what `attend_blockwise` took and gave."""
    B, T, H, D = query.shape
    S, K, D_v, dtype = *key.shape[1:3], value.shape[-1], query.dtype
    nb, nk, ng, bk, bq = blocks
    nh = blocks.query_heads
    exponent_scale, rate = jnp.asarray(settings.exponent_scale, dtype), settings.dropout_rate
    bias_shape = () if cells.bias is None else cells.bias.shape
    means = jnp.einsum("bthd,bthd->bht", context, gradient)
    query, gradient = zero_padded(query, bq), zero_padded(gradient, bq)
    key, value = zero_padded(key, bk), zero_padded(value, bk)
    means = zero_padded(means, bq, axis=2)
    # Padding has no weight, whatever its bias.
    log_sums = jnp.pad(log_sums, ((0, 0), (0, 0), (0, -T % bq)), constant_values=jnp.inf)
    columns = key.shape[1] // bk
    cells = cells.padded(query.shape[1], key.shape[1], real_keys=S)
    visits = plan_visits(cells.mask, blocks, key.shape[1], query.shape[1], turned=True)
    query_turned, gradient_turned = jnp.moveaxis(query, 1, 3), jnp.moveaxis(gradient, 1, 3)  # (B, H, D, T)
    key_turned = jnp.moveaxis(key, 1, 3)  # (B, K, D, S)

    def of_group(block: Array) -> Array:
        return jnp.broadcast_to(block[:, :, None], (nb, nk, ng, *block.shape[2:]))

    def key_block(index: Array, results: Any) -> Any:
        b, k, g, column = jnp.unravel_index(index, (*blocks.counts(B, K, H // K), columns))
        head = (b * nb, k * nk, g * ng)
        query_head = k * nk * (H // K) + g * ng
        at_keys = (b * nb, column * bk, k * nk, 0)
        keys = of_group(take(key, at_keys, (nb, bk, nk, D)).swapaxes(1, 2) * exponent_scale)
        values = of_group(take(value, at_keys, (nb, bk, nk, D_v)).swapaxes(1, 2))
        keys_turned = take(key_turned, (b * nb, k * nk, 0, column * bk), (nb, nk, D, bk)) * exponent_scale
        keys_turned = of_group(keys_turned)
        first, number = visits.of((b, k, g, column))

        def query_block(visit: Array, state: Any) -> Any:
            key_gradient, value_gradient, query_gradient, bias_gradient = state
            start = first + visit * bq
            down, across = (b * nb, start, query_head, 0), (b * nb, query_head, 0, start)
            cell = cells.cut((*head, start, column * bk), (*blocks.heads, bq, bk), turned=True)

            def rows(array: Array) -> Array:
                """Queries from top to bottom, (nb, nk, ng, bq, D)."""
                block = take(array, down, (nb, bq, nh, array.shape[-1])).swapaxes(1, 2)
                return block.reshape(*blocks.heads, bq, -1)

            def turned(array: Array) -> Array:
                """Queries from left to right, (nb, nk, ng, D, bq)."""
                return take(array, across, (nb, nh, array.shape[2], bq)).reshape(*blocks.heads, -1, bq)

            scores = jnp.matmul(keys, turned(query_turned))
            scores = cell.score(scores, start, column * bk, turned=True)  # (nb, nk, ng, bk, bq)
            # No weight exceeds 1, but where scores are huge, rounding could say so.
            weights = power_of_two(jnp.minimum(scores - turned(log_sums[:, :, None]), 0))
            value_gradient = value_gradient + jnp.matmul(cell.drop(weights, rate), rows(gradient))
            slopes = jnp.matmul(values, turned(gradient_turned))
            slopes = weights * (cell.drop(slopes, rate) - turned(means[:, :, None]))
            key_gradient = key_gradient + jnp.matmul(slopes, rows(query))
            share = jnp.matmul(keys_turned, slopes).reshape(nb, nh, D, bq)
            query_gradient = _add_at(query_gradient, share, across)
            if bias_gradient is not None:
                bias_gradient = _add_bias(bias_gradient, slopes.swapaxes(3, 4), (*head, start, column * bk))
            return key_gradient, value_gradient, query_gradient, bias_gradient

        key_gradient, value_gradient, *others = results
        zeros = [full((*blocks.heads, bk, width), 0, query) for width in (D, D_v)]
        *shares, query_gradient, bias_gradient = lax.fori_loop(0, number, query_block, (*zeros, *others))
        # The query heads of a group share their keys, so their gradients add up.
        key_share, value_share = (share.sum(2).swapaxes(1, 2) for share in shares)
        key_gradient = _add_at(key_gradient, key_share, at_keys)
        value_gradient = _add_at(value_gradient, value_share, at_keys)
        return key_gradient, value_gradient, query_gradient, bias_gradient

    bias_gradient = None if cells.bias is None else full(cells.bias.shape, 0, cells.bias)
    results = *(full(array.shape, 0, query) for array in (key, value, query_turned)), bias_gradient
    nbs, nks, ngs = blocks.counts(B, K, H // K)
    key_gradient, value_gradient, query_gradient, bias_gradient = lax.fori_loop(
        0, nbs * nks * ngs * columns, key_block, results
    )
    # Scores are exponents of 2, whose derivative brings down ln(2); for the bias, its own log2(e) cancels that.
    query_gradient = jnp.moveaxis(query_gradient, 3, 1)[:, :T] * jnp.asarray(LN_2, dtype)  # (B, T, H, D)
    key_gradient = key_gradient[:, :S] * jnp.asarray(settings.scale, dtype)
    if bias_gradient is not None:
        bias_gradient = bias_gradient[tuple(slice(n) for n in bias_shape)]
    return query_gradient, key_gradient, value_gradient[:, :S], bias_gradient


def _add_at(total: Array, share: Array, corner: Index) -> Array:
    return put(total, take(total, corner, share.shape) + share, corner)


def _add_bias(total: Array, slopes: Array, corner: Index) -> Array:
    axes = tuple(axis for axis, size in enumerate(total.shape) if size == 1)
    return _add_at(total, slopes.sum(axes, keepdims=True).astype(total.dtype), corner)
