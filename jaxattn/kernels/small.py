"""The dense kernel for calls with few scores in the whole batch, with residuals (context and lse) like blockwise.

Where the scores of all examples and heads stay in a CPU's caches, or take little of an accelerator's memory, blocks
only add overhead.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn.kernels import dense, few_queries, logits
from jaxattn.kernels.call import AttentionCall, Gradients
from jaxattn.kernels.diagonals import sum_diagonals, unpad_diagonals
from jaxattn.kernels.softmax import LogSumExp, delta_of, exponentials, join, sinks_gradient, through_cap

FEW_SCORES_IN_ALL = 2**17  # measured on CPUs by `jaxattn benchmark`
FEW_QUERIES = 4  # with so few the scores take about as much memory as the keys; measured on CPUs
LITTLE_MEMORY = 2**30  # bytes, on accelerators


def unsupported(call: AttentionCall) -> str | None:
    """Return why this kernel should not compute the call, or None."""
    if call.is_partial:
        return "knows the softmax of these keys alone"
    if few_queries.unsupported(call) is None:
        return "would read keys that are masked"
    if call.platform == "cpu" and call.sizes[0] <= FEW_QUERIES:
        return None
    if not isinstance(call.num_scores, int):
        return "is for a number of scores that is known"
    most = FEW_SCORES_IN_ALL if call.platform == "cpu" else LITTLE_MEMORY // np.dtype(call.wide).itemsize
    return f"is for up to {most} scores in all, not {call.num_scores}" if call.num_scores > most else None


def forward(call: AttentionCall) -> tuple[Array, LogSumExp]:
    """Return the context `(B, T, H, D_v)` and the logsumexp of each query's scores `(B, H, T)`."""
    steps = dense.attend(call)
    # In units of `softmax.py`: without a bias, the scale comes later.
    scores = steps.scores * float(np.sign(call.scale)) if call.is_plain else logits.logits(call, steps.scores)
    scores = logits.masked(call, scores)
    largest = scores.max(-1, initial=float(jnp.finfo(call.wide).min))
    total = exponentials(call, scores, largest[..., None]).sum(-1)
    # Where `vmap` maps the value alone, the scores have 1 in its axis.
    rows = (*call.batch, *total.shape[-2:])
    lse = LogSumExp.of(jnp.broadcast_to(largest, rows), jnp.broadcast_to(total, rows))
    return steps.context, lse if call.sinks is None else join(call, lse, LogSumExp.of_sinks(call))[0]


def backward(
    call: AttentionCall, context: Array, lse: LogSumExp, gradient: Array, lse_gradient: Array | None = None
) -> Gradients:
    """Return the gradients, by the formulas at the top of `blockwise_backward.py`."""
    T, _, H, K = call.sizes
    of_sinks = sinks_gradient(call, context, lse, gradient, lse_gradient)
    delta = delta_of(call, context, gradient, lse_gradient)[..., None]
    query, gradient = (jnp.moveaxis(array.astype(call.wide), -3, -2) for array in (call.query, gradient))
    # One key and value for each query head, (B, H, S, D).
    key, value = (
        jnp.repeat(jnp.moveaxis(array.astype(call.wide), -3, -2), H // K, axis=-3) for array in (call.key, call.value)
    )
    # `forward` takes the same steps from the same arrays; in one program the compiler computes them once.
    steps = dense.attend(call)
    weights = steps.weights.astype(call.wide)
    with call.matmul_precision():
        of_value = jnp.matmul(call.dropped(weights).swapaxes(-1, -2), gradient)
        of_weights = call.dropped(jnp.matmul(gradient, value.swapaxes(-1, -2)))
        of_logits = weights * (of_weights - delta)  # dS, (B, H, T, S)
        of_scores = through_cap(call, steps.scores, of_logits)
        of_query = jnp.moveaxis(jnp.matmul(of_scores, key), -3, -2) * call.scale
        of_key = jnp.matmul(of_scores.swapaxes(-1, -2), query) * call.scale
    of_key, of_value = (jnp.moveaxis(x, -3, -2) for x in (of_key, of_value))
    of_bias = None if call.bias is None else _summed_as(call.bias, call, of_logits)
    of_diagonals = None
    if call.diagonals is not None:
        of_diagonals = unpad_diagonals(call, _summed_as(call.diagonals, call, sum_diagonals(of_logits)), T)
    # The gradients of a group's query heads add up: (B, S, H, D) -> (B, S, K, D).
    of_key, of_value = (
        array.reshape(*array.shape[:-2], K, H // K, array.shape[-1]).sum(-2) for array in (of_key, of_value)
    )
    return Gradients(
        jnp.broadcast_to(of_query, (*call.batch, *call.query.shape[-3:])).astype(call.query.dtype),
        jnp.broadcast_to(of_key, (*call.batch, *call.key.shape[-3:])).astype(call.key.dtype),
        jnp.broadcast_to(of_value, (*call.batch, *call.value.shape[-3:])).astype(call.value.dtype),
        of_bias,
        of_diagonals,
        of_sinks,
    )


def _summed_as(bias: Array, call: AttentionCall, of_logits: Array) -> Array:
    """Sum over the axes in which the bias has 1, except those that `vmap` added."""
    of_logits = jnp.broadcast_to(of_logits, (*call.batch, *of_logits.shape[-3:]))
    axes = [axis for axis, n in enumerate(bias.shape) if n == 1 and axis >= call.mapped_axes]
    return of_logits.sum(axes, keepdims=True).astype(bias.dtype)
