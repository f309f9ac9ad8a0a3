"""Strategy "all_gather": each device keeps its queries and gathers all keys and values.

One exchange in place of many steps, for few devices: a device holds all keys of the sequence while it computes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxattn.kernels.call import AttentionCall
from jaxattn.kernels.softmax import with_sinks
from jaxattn.ring.order import zigzag_order
from jaxattn.ring.parts import LocalSums, Shards, Travellers, part, travellers_of
from jaxattn.ring.passing import Rows, forward
from jaxattn.ring.sending import gather


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(shards: Shards, call: AttentionCall) -> tuple[Array, Array]:
    """Return the context `(chunks, B, T, H, D_v)` and the natural logsumexp `(chunks, B, H, T)` of an arranged call."""
    return _forward(shards, call)[0]


def _forward(shards: Shards, call: AttentionCall) -> tuple[tuple[Array, Array], Any]:
    context, lse = with_sinks(call, *forward(_whole(shards, call)))
    context = context.astype(call.value.dtype)
    return (context, lse.natural(call)), (call, context, lse.finite())


def _whole(shards: Shards, call: AttentionCall) -> AttentionCall:
    """Return the part with all keys."""
    own = travellers_of(shards, call)  # one chunk, in the order of the caller

    def gathered(array: Array, axis: int, is_natural: bool = shards.is_natural) -> Array:
        axis = axis % array.ndim
        whole = gather(array, shards.axis, axis)
        return whole if is_natural else jnp.take(whole, shards.natural_keys, axis)

    keys = Travellers(
        gathered(own.key, -3),
        gathered(own.value, -3),
        tuple(gathered(array, -1) for array in own.mask),
        None if own.column_bits is None else gathered(own.column_bits, -1, True),  # drawn by position
    )
    return part(shards, call, jax.tree.map(lambda array: array[0], keys), *_begin(shards))


def _begin(shards: Shards) -> tuple[Array, int, int]:
    """Return where queries and keys begin."""
    return shards.first_queries(lax.axis_index(shards.axis)), 0, 0


def _backward(shards: Shards, residuals: Any, of_results: tuple[Array, Array]) -> tuple[AttentionCall]:
    rows = Rows.of(residuals, of_results)
    whole = _whole(shards, rows.call)
    gradients = rows.gradients(whole)
    sums = LocalSums.zeros(rows.call).add(shards, whole, gradients, *_begin(shards))
    return rows.in_all(sums, (_own(shards, gradients.key), _own(shards, gradients.value)))


def _own(shards: Shards, gradient: Array) -> Array:
    """(chunks, B, S, K, D) -> (1, B, S / n, K, D), summed over devices."""
    gradient, axis = gradient.sum(0, keepdims=True), gradient.ndim - 3
    gradient = (
        gradient if shards.is_natural else jnp.take(gradient, zigzag_order(shards.S, shards.layout.devices), axis)
    )
    return lax.psum_scatter(gradient, shards.axis, scatter_dimension=axis, tiled=True)


attend.defvjp(_forward, _backward)
