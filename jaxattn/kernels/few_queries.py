"""Few queries against many keys, as in decoding: each key is read once, as it lies in memory, without a copy.

What takes the time here is reading. So a product is a sum over elementwise multiplications, no axis moves, nothing is
padded, and blocks of keys in which all is masked, such as the part of a cache that is not filled, are never read.
"""

import functools
import math

import jax.numpy as jnp
from jax import Array, lax

from jaxattn.kernels.blocks import Blocks, HeadBlock, Index
from jaxattn.kernels.call import AttentionCall
from jaxattn.kernels.online import Results, Sums
from jaxattn.kernels.plan import Plan, plan_blocks
from jaxattn.kernels.platforms import on_one_device
from jaxattn.kernels.softmax import LogSumExp, signed_query
from jaxattn.kernels.tiles import Entries, positions, query_rows, take

FEW_ROWS = 8  # queries times the query heads of a KV head; with more, matrix products are faster. Measured.
MANY_KEYS = 1024
# A block of keys on a CPU: 4 MB in float32, and few enough keys to skip the others. On accelerators, few large steps.
BLOCK_CPU, LONGEST_CPU, STEPS_ACCELERATOR = 2**20, 2048, 16


def unsupported(call: AttentionCall) -> str | None:
    """Return why this kernel should not compute the call, or None."""
    T, S, H, K = call.sizes
    if call.return_weights:
        return "does not store the weights that return_weights asks for"
    if T * (H // max(K, 1)) > FEW_ROWS or S < MANY_KEYS:
        return f"is for few queries and many keys, not for {T} and {S}"
    if call.platform != "cpu" and call.mask is None:
        return "reads all keys where there is no mask"
    return None


def reason(call: AttentionCall) -> str | None:
    """Return why this kernel should compute the call, or None."""
    return "it reads each key once, and none in blocks that are masked" if unsupported(call) is None else None


def forward(call: AttentionCall) -> tuple[Array, LogSumExp]:
    """Return the context `(B, T, H, D_v)` and the logsumexp of each query's scores `(B, H, T)`."""
    T, S, _, _ = call.sizes
    blocks = _choose_blocks(call)
    plan, entries = plan_blocks(call, blocks, outer_is_query=True), Entries.of(call, T, S)
    body = functools.partial(_attend_example, call, blocks, plan, entries)
    return lax.fori_loop(0, blocks.steps, body, Results.empty(call, T, like=call.query)).first(T)


def _choose_blocks(call: AttentionCall) -> Blocks:
    """Choose blocks of keys for all heads; of one example on a single CPU device, where each has its own length."""
    T, S, H, K = call.sizes
    one_by_one = call.platform == "cpu" and on_one_device(call.platform)
    batch = (1,) * len(call.batch) if one_by_one else call.batch
    width = max(1, K * max(call.key.shape[-1], call.value.shape[-1]) * math.prod(batch))
    inner = min(LONGEST_CPU, BLOCK_CPU // width) if one_by_one else S // STEPS_ACCELERATOR
    inner = min(S, max(128, inner)) // 16 * 16
    counts = tuple(n // size for n, size in zip(call.batch, batch, strict=True))
    return Blocks((*batch, K, H // K), (*counts, 1, 1), T, 1, inner, -(-S // inner))


def _attend_example(
    call: AttentionCall, blocks: Blocks, plan: Plan, entries: Entries, step: Index, results: Results
) -> Results:
    """Compute the context of one example, or of all, and write it into the results."""
    heads, row = blocks.at(step)
    (T, S, _, _), bk = call.sizes, blocks.inner
    query = query_rows(signed_query(call), heads, 0, T).astype(call.wide)  # (B, K, G, T, D)
    count, first_key_of = plan.blocks_of(heads, row)

    def add_key_block(inner_step: Index, sums: Sums) -> Sums:
        begin = first_key_of(inner_step)
        first_key = jnp.minimum(begin, S - bk)  # the last block begins early, and what came before is masked
        key, value = (_as_it_lies(call, array, heads, first_key, bk) for array in (call.key, call.value))
        tile = entries.tile(heads, (0, first_key), (T, bk))
        places = positions(first_key, bk)
        scores = tile.masked(call, _scores(query, key), positions(0, T)[:, None], places[None, :])
        scores = jnp.where(places >= begin, scores, -jnp.inf)  # (B, K, G, T, bk)
        dropped = functools.partial(tile.dropped, rate=call.dropout_rate)
        return sums.add(call, scores, lambda weights: _average(dropped(weights), value))

    return results.write(heads, 0, lax.fori_loop(0, count, add_key_block, Sums.empty(call, blocks, like=call.query)))


def _as_it_lies(call: AttentionCall, array: Array, heads: HeadBlock, first: Index, rows: int) -> Array:
    """(B, S, K, D) -> (N, rows, K, D), with N examples, or (rows, K, D) if it is one: axes of 1 cost a CPU time."""
    (*batch, k, _), (*sizes, nk, _) = heads.start, heads.size
    tile = take(array, (*batch, first, k, 0), (*sizes, rows, nk, array.shape[-1])).astype(call.wide)
    examples = math.prod(tile.shape[:-3])
    return tile.reshape(*((examples,) if examples > 1 else ()), *tile.shape[-3:])


def _scores(query: Array, key: Array) -> Array:
    """(B, K, G, T, D) · (N, bk, K, D) -> (B, K, G, T, bk)."""
    *batch, K, G, T, D = query.shape
    rows = query.reshape(*key.shape[:-3], K, G * T, D)
    # Without barriers the compiler computes scores and weights again wherever they are used.
    columns = [
        lax.optimization_barrier((rows[..., None, :, row, :] * key).sum(-1)).swapaxes(-2, -1) for row in range(G * T)
    ]
    return jnp.stack(columns, -2).reshape(*batch, K, G, T, key.shape[-3])


def _average(weights: Array, value: Array) -> Array:
    """(B, K, G, T, bk) · (N, bk, K, D_v) -> (B, K, G, T, D_v)."""
    *batch, K, G, T, bk = weights.shape
    rows = weights.reshape(*value.shape[:-3], K, G * T, bk)
    sums = [
        (lax.optimization_barrier(rows[..., row, :].swapaxes(-2, -1))[..., None] * value).sum(-3)
        for row in range(G * T)
    ]
    return jnp.stack(sums, -2).reshape(*batch, K, G, T, value.shape[-1])
