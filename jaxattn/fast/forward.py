"""The forward pass: for each block of queries, a loop over the blocks of keys that it sees."""

import functools
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxattn.fast.blocks import Blocks, full, plan_visits, put, take, zero_padded
from jaxattn.fast.cells import LOG2_E, Cells, Settings
from jaxattn.fast.exponential import power_of_two

# Up to here, 2 ** score times a value, summed over 2 ** 30 keys, is far from overflow, and 2 ** -score from underflow.
SAFE_EXPONENT = 32.0


def attend_blockwise(
    blocks: Blocks, settings: Settings, query: Array, key: Array, value: Array, cells: Cells
) -> tuple[Array, Array]:
    """Return the context `(B, T, H, D_v)` and the base-2 logarithms of the sums `(B, H, T)`, inf for hidden rows."""
    B, T, H, D = query.shape
    S, K, D_v, dtype = *key.shape[1:3], value.shape[-1], query.dtype
    nb, nk, ng, bq, bk = blocks
    exponent_scale = jnp.asarray(settings.exponent_scale, dtype)
    bounded = _highest_exponent(query, key, exponent_scale, cells.bias) <= SAFE_EXPONENT
    query, key, value = zero_padded(query, bq), zero_padded(key, bk), zero_padded(value, bk)
    rows = query.shape[1] // bq
    cells = cells.padded(query.shape[1], key.shape[1], real_keys=S)
    visits = plan_visits(cells.mask, blocks, query.shape[1], key.shape[1], turned=False)
    key = jnp.moveaxis(key, 1, 3)  # (B, K, D, S)

    def query_block(index: Array, results: tuple[Array, Array], shifted: bool) -> tuple[Array, Array]:
        b, k, g, row = jnp.unravel_index(index, (*blocks.counts(B, K, H // K), rows))
        head = (b * nb, k * nk, g * ng)
        query_head = k * nk * (H // K) + g * ng
        at_queries = (b * nb, row * bq, query_head, 0)
        queries = take(query, at_queries, (nb, bq, blocks.query_heads, D)).swapaxes(1, 2) * exponent_scale
        queries = queries.reshape(*blocks.heads, bq, D)
        first, number = visits.of((b, k, g, row))

        def key_block(visit: Array, state: Any) -> Any:
            start = first + visit * bk
            keys = take(key, (b * nb, k * nk, 0, start), (nb, nk, D, bk))
            values = take(value, (b * nb, start, k * nk, 0), (nb, bk, nk, D_v)).swapaxes(1, 2)
            cell = cells.cut((*head, row * bq, start), (*blocks.heads, bq, bk))
            scores = cell.score(jnp.matmul(queries, keys[:, :, None]), row * bq, start)  # (nb, nk, ng, bq, bk)
            sums, context, *highest = state
            if shifted:
                higher = jnp.maximum(highest[0], scores.max(-1))
                shrink = power_of_two(highest[0] - higher)
                sums, context, highest = sums * shrink, context * shrink[..., None], [higher]
                scores = scores - higher[..., None]
            weights = power_of_two(scores)
            context = context + jnp.matmul(cell.drop(weights, settings.dropout_rate), values[:, :, None])
            return sums + weights.sum(-1), context, *highest

        shape = (*blocks.heads, bq)
        lowest = [full(shape, jnp.finfo(dtype).min, query)] if shifted else []
        state = (full(shape, 0, query), full((*shape, D_v), 0, query), *lowest)
        sums, context, *highest = lax.fori_loop(0, number, key_block, state)
        seen = sums > 0
        log_sums = jnp.where(seen, jnp.log2(sums) + (highest[0] if shifted else 0), jnp.inf)
        context = context / jnp.where(seen, sums, 1)[..., None]
        context = context.reshape(nb, blocks.query_heads, bq, D_v).swapaxes(1, 2)
        log_sums = log_sums.reshape(nb, blocks.query_heads, bq)
        return put(results[0], context, at_queries), put(results[1], log_sums, (b * nb, query_head, row * bq))

    results = full((B, rows * bq, H, D_v), 0, query), full((B, H, rows * bq), 0, query)
    nbs, nks, ngs = blocks.counts(B, K, H // K)
    count = nbs * nks * ngs * rows
    # Of two loops one does nothing (`lax.cond` would copy its operands). What does not depend on the index is computed
    # even in a loop that runs no turn, and with a single block nothing does; so that one is not left to choose.
    unshifted = jnp.where(bounded, count, 0) if count > 1 else 0
    results = lax.fori_loop(0, unshifted, functools.partial(query_block, shifted=False), results)
    context, log_sums = lax.fori_loop(unshifted, count, functools.partial(query_block, shifted=True), results)
    return context[:, :T], log_sums[..., :T]


def _highest_exponent(query: Array, key: Array, exponent_scale: Array, bias: Array | None) -> Array:
    """Bound all exponents: |query · key| is at most |query| · |key|."""
    # As einsum, for on a CPU the sum of a product is thirty times slower.
    longest = [jnp.sqrt(jnp.einsum("...d,...d->...", vectors, vectors).max()) for vectors in (query, key)]
    bound = longest[0] * longest[1] * jnp.abs(exponent_scale)
    return bound if bias is None else bound + jnp.abs(bias).max().astype(bound.dtype) * jnp.asarray(LOG2_E, bound.dtype)
