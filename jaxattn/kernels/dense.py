"""Attention that stores all scores and weights: the steps of `functional.py` in order, for many heads.

G = H / K query heads share each KV head. With K = H this is multi-head attention, with K = 1 multi-query attention.
"""

import contextlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxattn.functional import attention_scores, attention_weights, context_vectors
from jaxattn.kernels.call import AttentionCall
from jaxattn.random_bits import drop


class Steps(NamedTuple):
    """What the four steps return, in order; `kept_weights` are the weights after dropout."""

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
    with matmul_precision(call):
        query = jnp.moveaxis(
            call.query.reshape(*call.query.shape[:-2], K, H // K, call.query.shape[-1]), -4, -2
        )  # (..., K, G, T, D)
        key, value = (jnp.moveaxis(array, -3, -2)[..., None, :, :] for array in (call.key, call.value))
        scores = attention_scores(query, key.astype(query.dtype))  # (..., K, G, T, S)
        scores = scores.reshape(*scores.shape[:-4], H, T, S)
        weights = kept_weights = attention_weights(masked_logits(call, scores))
        if call.row_bits is not None and call.column_bits is not None:
            kept_weights = drop(weights, call.dropout_rate, call.row_bits, call.column_bits)
        grouped = kept_weights.reshape(*kept_weights.shape[:-3], K, H // K, T, S)
        context = jnp.moveaxis(context_vectors(grouped, value), -2, -4)  # (..., T, K, G, D_v)
    return Steps(scores, weights, kept_weights, context.reshape(*context.shape[:-3], H, context.shape[-1]))


def masked_logits(call: AttentionCall, scores: Array) -> Array:
    """Return scale · scores + bias, with -inf where the mask says no."""
    T, S, _, _ = call.sizes
    logits = scores * call.scale if call.bias is None else scores * call.scale + call.bias.astype(scores.dtype)
    if call.mask is None:
        return logits
    return jnp.where(call.mask.allows(jnp.arange(T)[:, None], jnp.arange(S)[None, :]), logits, -jnp.inf)


def matmul_precision(call: AttentionCall) -> contextlib.AbstractContextManager[None]:
    """Return a context in which matrix products have the precision that the call asks for."""
    name = None if call.precision is None else call.precision.name.lower()
    return contextlib.nullcontext() if name is None else jax.default_matmul_precision(name)
