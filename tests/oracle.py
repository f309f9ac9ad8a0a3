"""Attention written out in float64 NumPy, one query at a time: what every implementation is compared with."""

import numpy as np


def attend(query, key, value, mask=None, *, scale=None, bias=None, factors=None):
    """Context `(..., T, H, D_v)` and weights `(..., H, T, S)`; `factors` multiply the weights, as dropout does."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    *batch, T, H, D = query.shape
    S, K = key.shape[-3:-1]
    scale = D**-0.5 if scale is None else scale
    shape = (*batch, H, T, S)
    mask = np.broadcast_to(True if mask is None else np.asarray(mask), shape)
    bias = np.broadcast_to(0.0 if bias is None else np.asarray(bias, np.float64), shape)
    factors = np.broadcast_to(1.0 if factors is None else np.asarray(factors, np.float64), shape)
    context, weights = np.zeros((*batch, T, H, value.shape[-1])), np.zeros(shape)
    for example in np.ndindex(*batch):
        for head in range(H):
            shared = head // (H // K)
            for t in range(T):
                entry = (*example, head, t)
                allowed = mask[entry]
                if not allowed.any():
                    continue
                scores = scale * key[(*example, slice(None), shared)] @ query[(*example, t, head)] + bias[entry]
                exponentials = np.where(allowed, np.exp(scores - scores[allowed].max()), 0)
                weights[entry] = exponentials / exponentials.sum()
                context[(*example, t, head)] = (weights[entry] * factors[entry]) @ value[
                    (*example, slice(None), shared)
                ]
    return context, weights


def gradients(query, key, value, gradient, mask=None, *, scale=None, bias=None, factors=None):
    """What a gradient of the context pulls back to: gradients of query, key, value and the scores `(..., H, T, S)`."""
    query, key, value, gradient = (np.asarray(array, np.float64) for array in (query, key, value, gradient))
    H, D, K = query.shape[-2], query.shape[-1], key.shape[-2]
    scale = D**-0.5 if scale is None else scale
    _, weights = attend(query, key, value, mask, scale=scale, bias=bias)
    factors = np.broadcast_to(1.0 if factors is None else np.asarray(factors, np.float64), weights.shape)
    # (..., tokens, heads, width) -> (..., heads, tokens, width), each key head once for every query head
    keys, values = (np.repeat(np.swapaxes(array, -3, -2), H // K, axis=-3) for array in (key, value))
    queries, gradient = np.swapaxes(query, -3, -2), np.swapaxes(gradient, -3, -2)
    of_weights = gradient @ np.swapaxes(values, -1, -2) * factors
    of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdims=True))

    def shared(array):
        """(..., H, S, width) -> (..., S, K, width): the query heads of a group add up."""
        summed = array.reshape(*array.shape[:-3], K, H // K, *array.shape[-2:]).sum(-3)
        return np.swapaxes(summed, -3, -2)

    of_keys = shared(scale * np.swapaxes(of_scores, -1, -2) @ queries)
    of_values = shared(np.swapaxes(weights * factors, -1, -2) @ gradient)
    return np.swapaxes(scale * of_scores @ keys, -3, -2), of_keys, of_values, of_scores
