"""Strategy "ring": each device keeps its queries, and keys and values travel from device to device.

At each step a device attends to the keys that have arrived and passes them on. What it has and what it adds are
averages under exponentials with known sums, so the two combine exactly. In the backward pass the gradients of keys and
values travel along, and go home after the last step (Liu et al. 2023, "Ring Attention").

Keys travel in their own type; contexts and gradients are summed in float32. In zig-zag order every step has the same
work on each device (`order.py`; Zhu 2024, "ring-flash-attention").
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxattn.kernels import transforms
from jaxattn.kernels.call import AttentionCall, Gradients
from jaxattn.kernels.softmax import LogSumExp, join, sinks_gradient, with_sinks
from jaxattn.ring.parts import LocalSums, Shards, Travellers, first_queries, part, travellers_of
from jaxattn.ring.sending import permute

# Parts of one shape are traced once.
forward = jax.jit(functools.partial(transforms.map_as_batch, transforms.forward))
backward = jax.jit(functools.partial(transforms.map_as_batch, transforms.backward))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(shards: Shards, call: AttentionCall) -> tuple[Array, Array]:
    """Return the context `(chunks, B, T, H, D_v)` and the natural logsumexp `(chunks, B, H, T)` of an arranged call."""
    return _forward(shards, call)[0]


def _forward(shards: Shards, call: AttentionCall) -> tuple[tuple[Array, Array], Any]:
    context, lse = with_sinks(call, *_context(shards, call))
    context = context.astype(call.value.dtype)
    return (context, lse.natural(call)), (call, context, lse.finite())


def _context(shards: Shards, call: AttentionCall) -> tuple[Array, LogSumExp]:
    """Return the context, in the wide type, and the logsumexp over all keys."""
    *batch, T, H, _ = call.query.shape
    context = jnp.zeros((*batch, T, H, call.value.shape[-1]), call.wide)
    state, travellers = (context, LogSumExp.of_no_key((*batch, H, T), call.wide)), travellers_of(shards, call)
    state = _travel(shards, call, state, travellers, 1, range(shards.hops.up + 1))
    if shards.hops.down:
        travellers = passed_on(shards, travellers, -1)
        state = _travel(shards, call, state, travellers, -1, range(1, shards.hops.down + 1))
    return state


def _travel(
    shards: Shards, call: AttentionCall, state: Any, travellers: Travellers, direction: int, distances: range
) -> Any:
    """Attend to the keys after each of the distances that they travel, and pass them on to the next."""

    def step(carry: Any, distance: Array) -> Any:
        travellers, state = carry
        arriving = passed_on(shards, travellers, direction)
        return (arriving, _attend_to(shards, call, state, travellers, source(shards, direction * distance))), None

    if len(distances) > 1:
        (travellers, state), _ = lax.scan(step, (travellers, state), jnp.asarray(distances[:-1], jnp.int32))
    return _attend_to(shards, call, state, travellers, source(shards, direction * distances[-1]))


def _attend_to(shards: Shards, call: AttentionCall, state: Any, travellers: Travellers, device: Any) -> Any:
    """Add the keys of one device to the sums."""
    context, lse = state
    for chunk, _ in _parts(shards, call, travellers, device):
        of_chunk, lse_of_chunk = forward(chunk)
        lse, *shares = join(chunk, lse, lse_of_chunk)
        old, new = (jnp.swapaxes(share, -2, -1)[..., None] for share in shares)  # (..., H, T) -> (..., T, H, 1)
        context = context * old + of_chunk * new
    return context, lse


def _parts(shards: Shards, call: AttentionCall, travellers: Travellers, device: Any) -> Any:
    """Yield the parts with the keys of one device, and where the queries and keys of each begin."""
    first_query = first_queries(shards, lax.axis_index(shards.axis))
    keys = shards.S // shards.key_layout.count
    for slot, chunk in enumerate(shards.key_layout.chunks_of(device)):
        begin = first_query, chunk * keys, shards.column(device, slot)
        yield part(shards, call, travellers.chunk(slot), *begin), begin


def _backward(shards: Shards, residuals: Any, of_results: tuple[Array, Array]) -> tuple[AttentionCall]:
    call, context, lse = residuals
    gradient, of_lse = of_results
    of_lse = lse_gradient(call, lse, of_lse)

    def add(sums: LocalSums, travellers: Travellers, device: Any) -> tuple[LocalSums, tuple[Array, Array]]:
        """Add what stays here, and return the gradients of keys and values that came from one device."""
        of_keys = []
        for chunk, begin in _parts(shards, call, travellers, device):
            gradients = backward(chunk, context, lse, gradient, of_lse)
            sums = sums.add(shards, chunk, gradients, *begin)
            of_keys.append((gradients.key.sum(0), gradients.value.sum(0)))
        of_key, of_value = (jnp.stack(arrays) for arrays in zip(*of_keys, strict=True))
        return sums, (of_key, of_value)

    travellers = travellers_of(shards, call)
    sums, of_keys = add(LocalSums.zeros(call), travellers, source(shards, 0))
    for direction, last in ((1, shards.hops.up), (-1, shards.hops.down)):
        if last:
            sums, came_home = _gradients_of_others(shards, add, sums, travellers, direction, last)
            of_keys = jax.tree.map(jnp.add, of_keys, came_home)
    of_sinks = sinks_gradient(call, context, lse, gradient, of_lse)
    gradients = Gradients(sums.query, *of_keys, sums.bias, sums.diagonals, of_sinks)
    return (as_gradient(call, gradients),)


def _gradients_of_others(
    shards: Shards,
    add: Callable[..., Any],
    sums: LocalSums,
    travellers: Travellers,
    direction: int,
    last: int,
) -> tuple[LocalSums, Any]:
    """Let keys travel on to `last` devices, and return the gradients that came home to this device's own."""

    def step(carry: Any, distance: Array) -> Any:
        travellers, sums, of_keys = carry
        travellers, of_keys = passed_on(shards, travellers, direction), passed_around(shards, of_keys, direction)
        sums, more = add(sums, travellers, source(shards, direction * distance))
        return (travellers, sums, jax.tree.map(jnp.add, of_keys, more)), None

    travellers = passed_on(shards, travellers, direction)
    sums, of_keys = add(sums, travellers, source(shards, direction))
    if last > 1:
        (_, sums, of_keys), _ = lax.scan(step, (travellers, sums, of_keys), jnp.arange(2, last + 1, dtype=jnp.int32))
    return sums, passed_around(shards, of_keys, -direction * last)


attend.defvjp(_forward, _backward)


def lse_gradient(call: AttentionCall, lse: LogSumExp, gradient: Array) -> Array | None:
    """Return the gradient of the logsumexp, if the call returns it."""
    if not call.return_lse:
        return None
    # Queries that may attend to nothing have a logsumexp of -inf, and whatever its gradient, it moves nothing.
    return jnp.where(lse.log_total >= float(jnp.finfo(call.wide).max), 0, gradient)


def as_gradient(call: AttentionCall, gradients: Gradients) -> AttentionCall:
    """Return gradients in the types of a call's arrays, and none for the others."""
    arrays = {name: getattr(call, name) for name in gradients._fields}
    typed = {
        name: None if array is None else gradient.astype(array.dtype)
        for (name, array), gradient in zip(arrays.items(), gradients, strict=True)
    }
    return dataclasses.replace(call, **typed, mask=None, row_bits=None, column_bits=None)


def source(shards: Shards, distance: Any) -> Any:
    """Return the device whose keys have travelled so far up, or down if below 0, to this device."""
    return (lax.axis_index(shards.axis) - distance) % shards.layout.devices


def passed_on(shards: Shards, arrays: Any, direction: int) -> Any:
    """Pass arrays to the next device; unless the ring is cyclic, the last keeps its own and the first gets zeros."""
    n = shards.layout.devices
    pairs = tuple((i, (i + direction) % n) for i in range(n))
    if not shards.hops.is_cyclic:
        pairs = tuple((i, to) for i, to in pairs if to == i + direction)
    return jax.tree.map(lambda array: permute(array, shards.axis, pairs), arrays)


def passed_around(shards: Shards, arrays: Any, distance: int) -> Any:
    """Pass arrays to the device that stands so far up, around the ring."""
    n = shards.layout.devices
    pairs = tuple((i, (i + distance) % n) for i in range(n))
    return jax.tree.map(lambda array: permute(array, shards.axis, pairs), arrays)
