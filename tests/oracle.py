"""Attention written out in float64 NumPy, one query at a time: what every implementation is compared with."""

import jax
import numpy as np


def attend(query, key, value, mask=None, *, scale=None, bias=None, factors=None, soft_cap=None, sinks=None):
    """Context `(..., T, H, D_v)` and weights `(..., H, T, S)`; `factors` multiply the weights, as dropout does."""
    return attend_with_lse(
        query, key, value, mask, scale=scale, bias=bias, factors=factors, soft_cap=soft_cap, sinks=sinks
    )[:2]


def attend_with_lse(query, key, value, mask=None, *, scale=None, bias=None, factors=None, soft_cap=None, sinks=None):
    """The same, and the logsumexp `(..., H, T)`."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    *batch, T, H, D = query.shape
    S, K = key.shape[-3:-1]
    scale = D**-0.5 if scale is None else scale
    shape = (*batch, H, T, S)
    mask = np.broadcast_to(True if mask is None else np.asarray(mask), shape)
    bias = np.broadcast_to(0.0 if bias is None else np.asarray(bias, np.float64), shape)
    factors = np.broadcast_to(1.0 if factors is None else np.asarray(factors, np.float64), shape)
    context, weights = np.zeros((*batch, T, H, value.shape[-1])), np.zeros(shape)
    sinks = np.full(H, -np.inf) if sinks is None else np.asarray(sinks, np.float64)
    lse = np.broadcast_to(sinks[:, None], (*batch, H, T)).copy()
    for example in np.ndindex(*batch):
        for head in range(H):
            shared = head // (H // K)
            for t in range(T):
                entry = (*example, head, t)
                allowed = mask[entry]
                if not allowed.any():
                    continue
                scores = scale * key[(*example, slice(None), shared)] @ query[(*example, t, head)]
                if soft_cap is not None:
                    scores = soft_cap * np.tanh(scores / soft_cap)
                scores = scores + bias[entry]
                largest = max(scores[allowed].max(), sinks[head])
                if largest == -np.inf:
                    continue
                exponentials = np.where(allowed, np.exp(scores - largest), 0)
                total = exponentials.sum() + np.exp(sinks[head] - largest)
                weights[entry], lse[entry] = exponentials / total, largest + np.log(total)
                context[(*example, t, head)] = (weights[entry] * factors[entry]) @ value[
                    (*example, slice(None), shared)
                ]
    return context, weights, lse


def gradients(
    query,
    key,
    value,
    gradient,
    mask=None,
    *,
    scale=None,
    bias=None,
    factors=None,
    soft_cap=None,
    sinks=None,
    of_lse=0.0,
):
    """What gradients of context and lse pull back to: those of query, key, value, logits `(..., H, T, S)` and sinks."""
    query, key, value, gradient = (np.asarray(array, np.float64) for array in (query, key, value, gradient))
    H, D, K = query.shape[-2], query.shape[-1], key.shape[-2]
    scale = D**-0.5 if scale is None else scale
    options = {"scale": scale, "bias": bias, "soft_cap": soft_cap, "sinks": sinks}
    _, weights, lse = attend_with_lse(query, key, value, mask, **options)
    factors = np.broadcast_to(1.0 if factors is None else np.asarray(factors, np.float64), weights.shape)
    # (..., tokens, heads, width) -> (..., heads, tokens, width), each key head once for every query head
    keys, values = (np.repeat(np.swapaxes(array, -3, -2), H // K, axis=-3) for array in (key, value))
    queries, gradient = np.swapaxes(query, -3, -2), np.swapaxes(gradient, -3, -2)
    of_weights = gradient @ np.swapaxes(values, -1, -2) * factors
    delta = (weights * of_weights).sum(-1) - np.asarray(of_lse, np.float64)
    of_logits = of_scores = weights * (of_weights - delta[..., None])
    if soft_cap is not None:
        of_scores = of_logits * (1 - np.tanh(scale * queries @ np.swapaxes(keys, -1, -2) / soft_cap) ** 2)

    def shared(array):
        """(..., H, S, width) -> (..., S, K, width): the query heads of a group add up."""
        summed = array.reshape(*array.shape[:-3], K, H // K, *array.shape[-2:]).sum(-3)
        return np.swapaxes(summed, -3, -2)

    of_keys = shared(scale * np.swapaxes(of_scores, -1, -2) @ queries)
    of_values = shared(np.swapaxes(weights * factors, -1, -2) @ gradient)
    came = np.swapaxes(scale * of_scores @ keys, -3, -2), of_keys, of_values, of_logits
    if sinks is None:
        return came
    of_rows = -np.exp(np.asarray(sinks, np.float64)[:, None] - lse) * delta
    return *came, of_rows.sum((*range(of_rows.ndim - 2), -1))


def dropout_factors(shape, rate, key):
    """What dropout multiplies weights `(..., T, S)` with: 0 for the entries that the key drops, else 1 / (1 - rate).

    An entry is dropped if the hash of its row's and its column's bits is below rate · 2³².
    """
    row_key, column_key = jax.random.split(key)
    rows = np.asarray(jax.random.bits(row_key, (*shape[:-1], 1), np.uint32))
    columns = np.asarray(jax.random.bits(column_key, shape[-1:], np.uint32))
    bits = rows ^ columns
    for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits = (bits ^ (bits >> np.uint32(shift))) * np.uint32(multiplier)
    bits ^= bits >> np.uint32(16)
    return np.where(bits >= rate * 2**32, 1 / (1 - rate), 0)
