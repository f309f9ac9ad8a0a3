"""From scores to what the softmax takes, where all are stored: scale, soft cap, bias, mask, sinks, in this order."""

import jax.numpy as jnp
from jax import Array, lax

from jaxattn.kernels.call import AttentionCall
from jaxattn.kernels.diagonals import bias_of
from jaxattn.kernels.softmax import capped


def logits(call: AttentionCall, scores: Array) -> Array:
    """Return soft_cap · tanh(scale · scores / soft_cap) + bias, without what the call has not."""
    scores = capped(call, scores * call.scale)
    if call.bias is not None:
        scores = scores + call.bias.astype(scores.dtype)
    return scores if call.diagonals is None else scores + bias_of(call).astype(scores.dtype)


def masked(call: AttentionCall, logits: Array) -> Array:
    """Put -inf where the mask says no."""
    logits, allowed = call.with_mask(logits)
    return logits if allowed is None else jnp.where(allowed, logits, -jnp.inf)


def with_sinks(call: AttentionCall, logits: Array, allowed: Array | None) -> tuple[Array, Array | None]:
    """Append each head's sink to its rows, as one more key to which every query may attend."""
    if call.sinks is None:
        return logits, allowed
    lowest = float(jnp.finfo(logits.dtype).min)  # and no constant -inf, which `jax_debug_infs` stops at
    sinks = jnp.broadcast_to(call.sinks.astype(logits.dtype), (*logits.shape[:-1], 1))
    if allowed is None:
        allowed = jnp.ones_like(logits, bool)
    # A sink of -inf weighs nothing.
    return jnp.concatenate([logits, sinks], -1), jnp.concatenate([allowed, ~(sinks < lowest)], -1)


def log_sum_exp(call: AttentionCall, scores: Array) -> Array:
    """Return the natural logsumexp `(B, H, T)` of the logits and the sinks; -inf where there is none."""
    values, allowed = with_sinks(call, *call.with_mask(logits(call, scores)))
    lowest = float(jnp.finfo(values.dtype).min)
    values = values if allowed is None else jnp.where(allowed, values, lowest)
    largest = lax.stop_gradient(values.max(-1, keepdims=True, initial=lowest))
    exponentials = jnp.exp(values - largest)
    total = (exponentials if allowed is None else jnp.where(allowed, exponentials, 0)).sum(-1)
    any_key = total > 0
    # The logarithm of 0 is -inf, which is made for rows without a key alone.
    of_no_key = jnp.log(any_key.astype(values.dtype))
    return largest[..., 0] + jnp.log(jnp.where(any_key, total, 1)) + of_no_key
