"""Attention that stores all scores and weights: the steps of `functional.py` in order, for many heads.

G = H / K query heads share each KV head. With K = H this is multi-head attention, with K = 1 multi-query attention.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxattn.functional import attention_scores, attention_weights, context_vectors
from jaxattn.kernels.call import AttentionCall
from jaxattn.kernels.logits import logits, with_sinks


class Steps(NamedTuple):
    """What each step returns, in order; `scores` are query · key, `kept_weights` the weights after dropout."""

    scores: Float[Array, "*batch H T S"]
    weights: Float[Array, "*batch H T S"]
    kept_weights: Float[Array, "*batch H T S"]
    context: Float[Array, "*batch T H D_v"]


def unsupported(call: AttentionCall) -> str | None:
    """Return why this kernel cannot compute the call: it can compute all of them."""
    return None


def attend(call: AttentionCall) -> Steps:
    """Compute every step of attention."""
    T, S, H, K = call.sizes
    G = H // max(K, 1)
    with call.matmul_precision():
        # (..., T, H, D) -> (..., K, G, T, D)
        query = call.query.reshape(*call.query.shape[:-2], K, G, call.query.shape[-1])
        query = jnp.moveaxis(query, -4, -2)
        # (..., S, K, D) -> (..., K, 1, S, D)
        key, value = (jnp.moveaxis(array, -3, -2)[..., None, :, :] for array in (call.key, call.value))
        # A scale that is an array has widened the query.
        scores = attention_scores(query, key.astype(query.dtype))  # (..., K, G, T, S)
        scores = scores.reshape(*scores.shape[:-4], H, T, S)
        weights = attention_weights(*with_sinks(call, *call.with_mask(logits(call, scores))))
        weights = weights if call.sinks is None else weights[..., :-1]
        kept_weights = call.dropped(weights)
        grouped = kept_weights.reshape(*kept_weights.shape[:-3], K, G, T, S)
        context = jnp.moveaxis(context_vectors(grouped, value), -2, -4)  # (..., T, K, G, D_v)
    return Steps(scores, weights, kept_weights, context.reshape(*context.shape[:-3], H, context.shape[-1]))
