"""The backward pass: for each block of keys, a loop over the blocks of queries that see it; weights are computed anew.

With P the weights, P' what dropout leaves of them, and dO the gradient of the context:

    dV = P'ᵀ dO     dP = drop(dO Vᵀ)     dS = P ∘ (dP − rowsum(dO ∘ O))     dQ = dS K     dK = dSᵀ Q

(Dao et al. 2022, "FlashAttention", appendix B.2.) The scores are transposed throughout, keys × queries: then all five
products contract the last axis of one factor with the first of the other, and processors like that best.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxattn.fast.blocks import Blocks, Index, plan_visits, put, take, zero_padded
from jaxattn.fast.cells import Cells
from jaxattn.fast.exponential import power_of_two

LN_2 = 0.6931471805599453


def pull_back_blockwise(
    blocks: Blocks,
    rate: float,
    query: Array,
    key: Array,
    value: Array,
    cells: Cells,
    context: Array,
    log_sums: Array,
    gradient: Array,
) -> tuple[Array, Array, Array, Array | None]:
    """Return the gradients of query, key, value and bias, from what `attend_blockwise` took and gave."""
    B, T, K, G, D = query.shape
    S, D_v, dtype = key.shape[1], value.shape[-1], query.dtype
    nb, nk, ng, bk, bq = blocks
    bias_shape = () if cells.bias is None else cells.bias.shape
    means = jnp.einsum("...d,...d->...", context, gradient)  # (B, T, K, G)
    query, gradient, means = (zero_padded(array, bq) for array in (query, gradient, means))
    key, value = zero_padded(key, bk), zero_padded(value, bk)
    log_sums = zero_padded(log_sums, bq, axis=3)[..., None, :]
    columns = key.shape[1] // bk
    cells = cells.padded(query.shape[1], key.shape[1], real_keys=S)
    visits = plan_visits(cells.mask, blocks, key.shape[1], query.shape[1], turned=True)
    query_turned, gradient_turned = _turned(query), _turned(gradient)
    key_turned = jnp.moveaxis(key, 1, 3)  # (B, K, D, S)

    def of_group(block: Array) -> Array:
        return jnp.broadcast_to(block[:, :, None], (nb, nk, ng, *block.shape[2:]))

    def key_block(index: Array, results: Any) -> Any:
        b, k, g, column = jnp.unravel_index(index, (*blocks.counts(B, K, G), columns))
        head = (b * nb, k * nk, g * ng)
        at_keys = (b * nb, column * bk, k * nk, 0)
        keys = of_group(take(key, at_keys, (nb, bk, nk, D)).swapaxes(1, 2))
        values = of_group(take(value, at_keys, (nb, bk, nk, D_v)).swapaxes(1, 2))
        keys_turned = of_group(take(key_turned, (b * nb, k * nk, 0, column * bk), (nb, nk, D, bk)))
        first, number = visits.of((b, k, g, column))

        def query_block(visit: Array, state: Any) -> Any:
            key_gradient, value_gradient, query_gradient, bias_gradient = state
            start = first + visit * bq
            down, across = (b * nb, start, k * nk, g * ng, 0), (*head, 0, start)
            cell = cells.cut((*head, start, column * bk), (*blocks.heads, bq, bk), turned=True)
            queries = jnp.moveaxis(take(query, down, (nb, bq, nk, ng, D)), 1, 3)
            gradients = jnp.moveaxis(take(gradient, down, (nb, bq, nk, ng, D_v)), 1, 3)
            mean = jnp.moveaxis(take(means, down[:4], (nb, bq, nk, ng)), 1, 3)[..., None, :]

            scores = jnp.matmul(keys, take(query_turned, across, (*blocks.heads, D, bq)))
            scores = cell.score(scores, start, column * bk, turned=True)  # (nb, nk, ng, bk, bq)
            weights = power_of_two(scores - take(log_sums, across, (*blocks.heads, 1, bq)))
            value_gradient = value_gradient + jnp.matmul(cell.drop(weights, rate), gradients)
            slopes = jnp.matmul(values, take(gradient_turned, across, (*blocks.heads, D_v, bq)))
            slopes = weights * (cell.drop(slopes, rate) - mean)
            key_gradient = key_gradient + jnp.matmul(slopes, queries)
            query_gradient = _add_at(query_gradient, jnp.matmul(keys_turned, slopes), across)
            if bias_gradient is not None:
                bias_gradient = _add_bias(bias_gradient, slopes.swapaxes(3, 4), (*head, start, column * bk))
            return key_gradient, value_gradient, query_gradient, bias_gradient

        key_gradient, value_gradient, *others = results
        zeros = [jnp.zeros((*blocks.heads, bk, width), dtype) for width in (D, D_v)]
        *shares, query_gradient, bias_gradient = lax.fori_loop(0, number, query_block, (*zeros, *others))
        # The query heads of a group share their keys, so their gradients add up.
        key_share, value_share = (share.sum(2).swapaxes(1, 2) for share in shares)
        key_gradient = _add_at(key_gradient, key_share, at_keys)
        value_gradient = _add_at(value_gradient, value_share, at_keys)
        return key_gradient, value_gradient, query_gradient, bias_gradient

    bias_gradient = None if cells.bias is None else jnp.zeros_like(cells.bias)
    results = jnp.zeros_like(key), jnp.zeros_like(value), jnp.zeros_like(query_turned), bias_gradient
    nbs, nks, ngs = blocks.counts(B, K, G)
    key_gradient, value_gradient, query_gradient, bias_gradient = lax.fori_loop(
        0, nbs * nks * ngs * columns, key_block, results
    )
    # Scores are exponents of 2, whose derivative brings down ln(2); for the bias, its own log2(e) cancels that.
    ln2 = jnp.asarray(LN_2, dtype)
    query_gradient = jnp.moveaxis(query_gradient, 4, 1)[:, :T]  # (B, K, G, D, T) -> (B, T, K, G, D)
    if bias_gradient is not None:
        bias_gradient = bias_gradient[tuple(slice(n) for n in bias_shape)]
    return query_gradient * ln2, key_gradient[:, :S] * ln2, value_gradient[:, :S], bias_gradient


def _turned(array: Array) -> Array:
    """(B, T, K, G, D) -> (B, K, G, D, T), in one pass."""
    B, T, K, G, D = array.shape
    return jnp.moveaxis(array.reshape(B, T, K * G, D), 1, 3).reshape(B, K, G, D, T)


def _add_at(total: Array, share: Array, corner: Index) -> Array:
    return put(total, take(total, corner, share.shape) + share, corner)


def _add_bias(total: Array, slopes: Array, corner: Index) -> Array:
    axes = tuple(axis for axis, size in enumerate(total.shape) if size == 1)
    return _add_at(total, slopes.sum(axes, keepdims=True).astype(total.dtype), corner)
