"""Strategy "ring": each device keeps its queries, and keys and values travel from device to device.

At each step a device attends to the keys that have arrived and passes them on. What it has and what it adds are
averages under exponentials with known sums, so the two combine exactly. In the backward pass the gradients of keys and
values travel along, and go home after the last step (Liu et al. 2023, "Ring Attention").

Keys travel in their own type; contexts and gradients are summed in float32. In zig-zag order every step has the same
work on each device (`order.py`; Zhu 2024, "ring-flash-attention").
"""

import dataclasses
import functools
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxattn.kernels import transforms
from jaxattn.kernels.call import AttentionCall, Gradients
from jaxattn.kernels.softmax import LogSumExp, join, sinks_gradient, with_sinks
from jaxattn.ring.parts import LocalSums, Shards, Travellers, part, travellers_of
from jaxattn.ring.sending import permute

Tree = TypeVar("Tree")

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
    """Add the keys of one device to the sums, chunk by chunk."""
    first_query = shards.first_queries(lax.axis_index(shards.axis))

    def add(state: Any, keys: Any) -> Any:
        context, lse = state
        chunk = part(shards, call, keys[0], first_query, *keys[1:])
        of_chunk, lse_of_chunk = forward(chunk)
        lse, *shares = join(chunk, lse, lse_of_chunk)
        old, new = (jnp.swapaxes(share, -2, -1)[..., None] for share in shares)  # (..., H, T) -> (..., T, H, 1)
        return (context * old + of_chunk * new, lse), None

    return lax.scan(add, state, (travellers, *shards.first_keys(device)))[0]


class Rows(NamedTuple):
    """What the backward pass needs of the queries: the call, its results, and their gradients."""

    call: AttentionCall
    context: Array
    lse: LogSumExp
    gradient: Array
    of_lse: Array | None

    @classmethod
    def of(cls, residuals: Any, of_results: tuple[Array, Array]) -> "Rows":
        """Gather them, without a gradient of the logsumexp if the call does not return it."""
        (call, context, lse), (gradient, of_lse) = residuals, of_results
        return cls(call, context, lse, gradient, lse.of_some_key(of_lse) if call.return_lse else None)

    def gradients(self, part: AttentionCall) -> Gradients:
        """Return the gradients of a part of the call."""
        return backward(part, self.context, self.lse, self.gradient, self.of_lse)

    def in_all(self, sums: LocalSums, of_keys: tuple[Array, Array]) -> tuple[AttentionCall]:
        """Return all gradients of the call, in the types of its arrays."""
        call = self.call
        of_sinks = sinks_gradient(call, self.context, self.lse, self.gradient, self.of_lse)
        gradients = Gradients(sums.query, *of_keys, sums.bias, sums.diagonals, of_sinks)._asdict()
        typed: dict[str, Any] = {
            name: None if gradient is None else gradient.astype(getattr(call, name).dtype)
            for name, gradient in gradients.items()
        }
        return (dataclasses.replace(call, **typed, mask=None, row_bits=None, column_bits=None),)


def _backward(shards: Shards, residuals: Any, of_results: tuple[Array, Array]) -> tuple[AttentionCall]:
    rows = Rows.of(residuals, of_results)
    travellers = travellers_of(shards, rows.call)
    sums, of_keys = _add_gradients(shards, rows, LocalSums.zeros(rows.call), travellers, source(shards, 0))
    for direction, last in ((1, shards.hops.up), (-1, shards.hops.down)):
        if last:
            sums, came_home = _gradients_of_others(shards, rows, sums, travellers, direction, last)
            of_keys = jax.tree.map(jnp.add, of_keys, came_home)
    return rows.in_all(sums, of_keys)


def _add_gradients(shards: Shards, rows: Rows, sums: LocalSums, travellers: Travellers, device: Any) -> Any:
    """Add what stays here, and return the gradients `(chunks, ...)` of keys and values that came from one device."""
    first_query = shards.first_queries(lax.axis_index(shards.axis))

    def add(sums: LocalSums, keys: Any) -> tuple[LocalSums, tuple[Array, Array]]:
        chunk = part(shards, rows.call, keys[0], first_query, *keys[1:])
        gradients = rows.gradients(chunk)
        sums = sums.add(shards, chunk, gradients, first_query, *keys[1:])
        return sums, (gradients.key.sum(0), gradients.value.sum(0))

    return lax.scan(add, sums, (travellers, *shards.first_keys(device)))


def _gradients_of_others(
    shards: Shards, rows: Rows, sums: LocalSums, travellers: Travellers, direction: int, last: int
) -> tuple[LocalSums, Any]:
    """Let keys travel on to `last` devices, and return the gradients that came home to this device's own."""

    def step(carry: Any, distance: Array) -> Any:
        travellers, sums, of_keys = carry
        travellers, of_keys = passed_on(shards, travellers, direction), passed_around(shards, of_keys, direction)
        sums, more = _add_gradients(shards, rows, sums, travellers, source(shards, direction * distance))
        return (travellers, sums, jax.tree.map(jnp.add, of_keys, more)), None

    travellers = passed_on(shards, travellers, direction)
    sums, of_keys = _add_gradients(shards, rows, sums, travellers, source(shards, direction))
    if last > 1:
        (_, sums, of_keys), _ = lax.scan(step, (travellers, sums, of_keys), jnp.arange(2, last + 1, dtype=jnp.int32))
    return sums, passed_around(shards, of_keys, -direction * last)


attend.defvjp(_forward, _backward)


def source(shards: Shards, distance: int | Array) -> Array:
    """Return the device whose keys have travelled so far up, or down if below 0, to this device."""
    device: Array = (lax.axis_index(shards.axis) - distance) % shards.layout.devices
    return device


def passed_on(shards: Shards, arrays: Tree, direction: int) -> Tree:
    """Pass arrays to the next device; unless the ring is cyclic, the last keeps its own and the first gets zeros."""
    n = shards.layout.devices
    pairs = tuple((i, (i + direction) % n) for i in range(n))
    if not shards.hops.is_cyclic:
        pairs = tuple((i, to) for i, to in pairs if to == i + direction)
    passed: Tree = jax.tree.map(lambda array: permute(array, shards.axis, pairs), arrays)
    return passed


def passed_around(shards: Shards, arrays: Tree, distance: int) -> Tree:
    """Pass arrays to the device that stands so far up, around the ring."""
    n = shards.layout.devices
    pairs = tuple((i, (i + distance) % n) for i in range(n))
    passed: Tree = jax.tree.map(lambda array: permute(array, shards.axis, pairs), arrays)
    return passed
