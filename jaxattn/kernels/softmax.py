"""How scores become weights, in the same way in all passes of all kernels that do not store them.

    score  = ± query · key                          with the sign of the scale, if the call is plain
           = cap(scale · query · key) + bias        if it has a bias or a cap: cap(x) = soft_cap · tanh(x / soft_cap)
    weight = 2 ** ((score - largest) · rate - log_total)

`largest` is the row's largest score, `log_total` the base-2 logarithm of the sum of 2 ** ((score - largest) · rate),
and `rate` is |scale| · log2(e), or log2(e) if the call is not plain. The factor comes after the difference, which is
exact where two scores are close: weights are as right for scores of a million as for scores of one, and the products
take queries and keys as they come, in their own type. For the same reason the logsumexp is kept in two parts.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxattn.kernels.call import AttentionCall
from jaxattn.kernels.exp2 import LOG2_E, exp2


class LogSumExp(NamedTuple):
    """The logsumexp of each query's scores `(B, H, T)`, in two parts; where all keys are masked, 0 and inf."""

    largest: Array
    log_total: Array

    @classmethod
    def of_no_key(cls, shape: tuple[int, ...], dtype: DTypeLike) -> "LogSumExp":
        """Return the logsumexp of queries that may attend to nothing."""
        return cls(jnp.zeros(shape, dtype), jnp.full(shape, jnp.inf, dtype))

    def finite(self) -> "LogSumExp":
        """Return the largest number in place of inf: weights are 0 too, and `jax_debug_infs` finds no inf."""
        most = float(jnp.finfo(self.log_total.dtype).max)
        return LogSumExp(self.largest, jnp.minimum(self.log_total, most))

    def natural(self, call: AttentionCall) -> Array:
        """Return the natural logsumexp in one number, -inf for queries that may attend to nothing."""
        sum_of_parts = self.largest * (rate(call) / LOG2_E) + self.log_total / LOG2_E
        return jnp.where(jnp.isposinf(self.log_total), -jnp.inf, sum_of_parts)

    def of_some_key(self, gradient: Array) -> Array:
        """Return the gradient of `natural`, 0 for queries that may attend to nothing, whose -inf nothing moves."""
        return jnp.where(self.log_total >= float(jnp.finfo(self.log_total.dtype).max), 0, gradient)

    @classmethod
    def of_sinks(cls, call: AttentionCall) -> "LogSumExp":
        """Return the logsumexp `(B, H, 1)` of the sinks alone."""
        sinks = call.sinks[..., 0]
        most = float(jnp.finfo(sinks.dtype).max) / 4
        largest = jnp.clip(sinks / (rate(call) / LOG2_E), -most, most)
        return cls(largest, jnp.where(jnp.isneginf(sinks), jnp.inf, 0).astype(sinks.dtype))

    @classmethod
    def of(cls, largest: Array, total: Array) -> "LogSumExp":
        """Return the logsumexp for a row's largest score and the total relative to it."""
        any_key = total > 0
        log_total = jnp.where(any_key, jnp.log2(jnp.where(any_key, total, 1)), jnp.inf)
        return cls(jnp.where(any_key, largest, 0), log_total)


def join(call: AttentionCall, first: LogSumExp, second: LogSumExp) -> tuple[LogSumExp, Array, Array]:
    """Return the logsumexp over two sets of keys, and the share of each set in the weights."""
    largest = jnp.maximum(*(jnp.where(jnp.isposinf(lse.log_total), -jnp.inf, lse.largest) for lse in (first, second)))
    largest = jnp.where(jnp.isneginf(largest), 0, largest)
    totals = [
        jnp.where(jnp.isposinf(lse.log_total), 0, jnp.exp2(lse.log_total) * exponentials(call, lse.largest, largest))
        for lse in (first, second)
    ]
    total = totals[0] + totals[1]
    old, new = (part / jnp.where(total > 0, total, 1) for part in totals)
    return LogSumExp.of(largest, total), old, new


def with_sinks(call: AttentionCall, context: Array, lse: LogSumExp) -> tuple[Array, LogSumExp]:
    """Add the sinks to the sums of the keys: the weights shrink by the sinks' share."""
    if call.sinks is None:
        return context, lse
    joined, of_keys, _ = join(call, lse, LogSumExp.of_sinks(call))
    factor = jnp.swapaxes(of_keys, -2, -1)[..., None]  # (B, H, T) -> (B, T, H, 1)
    return (context.astype(call.wide) * factor).astype(context.dtype), joined


def sinks_gradient(
    call: AttentionCall, context: Array, lse: LogSumExp, gradient: Array, lse_gradient: Array | None
) -> Array | None:
    """Return the gradient of the sinks `(B, H, 1, 1)`, summed over the axes in which they have 1, but mapped ones.

    A sink is one more key with a value of 0.
    """
    if call.sinks is None:
        return None
    sink = LogSumExp.of_sinks(call)
    exponents = (sink.largest - lse.largest) * jnp.asarray(rate(call), lse.largest.dtype) - lse.log_total
    weights = jnp.where(jnp.isposinf(sink.log_total), 0, exp2(jnp.minimum(exponents, 0)))  # (B, H, T)
    of_sinks = -weights * delta_of(call, context, gradient, lse_gradient)
    mapped = call.mapped_axes
    of_sinks = jnp.broadcast_to(of_sinks, (*call.batch, *of_sinks.shape[-2:])).sum(-1)[..., None, None]
    axes = [axis for axis, n in enumerate(call.sinks.shape[:-3]) if n == 1 and axis >= mapped]
    return of_sinks.sum(axes, keepdims=True).astype(call.sinks.dtype)


def delta_of(call: AttentionCall, context: Array, gradient: Array, lse_gradient: Array | None) -> Array:
    """Return delta `(B, H, T)` = rowsum(dO ∘ O), less the gradient of the lse, whose derivatives are the weights."""
    with call.matmul_precision():
        delta = jnp.einsum("...thd,...thd->...ht", context.astype(call.wide), gradient.astype(call.wide))
    return delta if lse_gradient is None else delta - lse_gradient


def capped(call: AttentionCall, logits: Array) -> Array:
    """Apply the soft cap, if there is one, to scaled scores."""
    if call.soft_cap is None:
        return logits
    cap = jnp.asarray(call.soft_cap, logits.dtype)
    return cap * jnp.tanh(logits / cap)


def through_cap(call: AttentionCall, scores: Array, of_logits: Array) -> Array:
    """Return the gradient of scaled scores from that of the logits; `scores` are query · key."""
    if call.soft_cap is None:
        return of_logits
    tanh = jnp.tanh(scores * jnp.asarray(call.scale / call.soft_cap, scores.dtype))
    # Where nothing flows, an infinite score makes no NaN.
    return jnp.where(of_logits == 0, 0, of_logits * (1 - tanh * tanh))


def signed_query(call: AttentionCall) -> Array:
    """Return the query for scores as at the top: with the sign of the scale, if the call is plain."""
    if not call.is_plain or call.scale > 0:
        return call.query
    # A scale of 0, or NaN, has no logarithm: the query takes all of it.
    return -call.query if call.scale < 0 else call.query * jnp.asarray(call.scale, call.query.dtype)


def rate(call: AttentionCall) -> float:
    """Return the factor from differences of scores to exponents of 2; more than 0, so that -inf stays."""
    if not call.is_plain or not abs(call.scale) > 0:
        return LOG2_E
    return max(abs(call.scale) * LOG2_E, float(jnp.finfo(call.wide).tiny))


def exponentials(call: AttentionCall, scores: Array, largest: Array) -> Array:
    """Return 2 ** ((score - largest) · rate)."""
    return exp2((scores - largest) * jnp.asarray(rate(call), scores.dtype))


def weights_from(call: AttentionCall, scores: Array, lse: LogSumExp) -> Array:
    """Return the weights again, from the logsumexp."""
    exponents = (scores - lse.largest) * jnp.asarray(rate(call), scores.dtype) - lse.log_total
    # No weight exceeds 1, except by rounding where scores are huge.
    return exp2(jnp.minimum(exponents, 0))


def product(call: AttentionCall, first: Array, second: Array) -> Array:
    """Multiply two matrices of the call's type, or of a wider one, and sum in the wide type.

    Accelerators multiply narrow numbers fastest. CPUs multiply float32 only, and convert a tile in their caches.
    """
    if call.platform == "cpu" or first.dtype != second.dtype:
        first, second = first.astype(call.wide), second.astype(call.wide)
    return jnp.matmul(first, second, preferred_element_type=call.wide)


def as_factor(call: AttentionCall, computed: Array) -> Array:
    """Return weights, or their gradients, as accelerators multiply them: in bfloat16, where the inputs have it.

    float16 is too narrow for gradients.
    """
    return computed.astype(jnp.bfloat16) if call.platform != "cpu" and call.value.dtype == jnp.bfloat16 else computed
