"""Attention written out in float64 NumPy, one query at a time: what every implementation is compared with."""

import numpy as np


def attend(query, key, value, visible=None, *, scale=None, bias=None, factors=None):
    """Context `(..., T, H, D_v)` and weights `(..., H, T, S)`; `factors` multiply the weights, as dropout does."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    *batch, T, H, D = query.shape
    S, K = key.shape[-3:-1]
    scale = D**-0.5 if scale is None else scale
    shape = (*batch, H, T, S)
    visible = np.broadcast_to(True if visible is None else np.asarray(visible), shape)
    bias = np.broadcast_to(0.0 if bias is None else np.asarray(bias, np.float64), shape)
    factors = np.broadcast_to(1.0 if factors is None else np.asarray(factors, np.float64), shape)
    context, weights = np.zeros((*batch, T, H, value.shape[-1])), np.zeros(shape)
    for example in np.ndindex(*batch):
        for head in range(H):
            shared = head // (H // K)
            for t in range(T):
                cell = (*example, head, t)
                seen = visible[cell]
                if not seen.any():
                    continue
                scores = scale * key[(*example, slice(None), shared)] @ query[(*example, t, head)] + bias[cell]
                exponentials = np.where(seen, np.exp(scores - scores[seen].max()), 0)
                weights[cell] = exponentials / exponentials.sum()
                context[(*example, t, head)] = (weights[cell] * factors[cell]) @ value[(*example, slice(None), shared)]
    return context, weights
