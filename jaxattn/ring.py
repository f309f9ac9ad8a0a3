"""Ring attention, for sequences longer than one device holds: keys and values travel around a ring of devices.

Each device keeps its queries. At each of n steps it attends to the keys that have just arrived and passes them on. What
it has and what it adds are averages under exponentials with known sums, so the two combine exactly. In the backward
pass the gradients of keys and values travel along and are home after the last step (Liu et al. 2023, "Ring Attention").
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from jaxattn.checks import as_integers, broadcasts
from jaxattn.kernels.call import AttentionCall, checked_call
from jaxattn.kernels.softmax import LogSumExp, join
from jaxattn.kernels.transforms import backward, forward, map_as_batch
from jaxattn.masks import Causal, Mask, Segments, SlidingWindow, combine


class Ring(NamedTuple):
    """The devices of `ring_attention`; the fields are its arguments of the same names."""

    mesh: Mesh
    axis: str
    batch_axis: str | None = None
    head_axis: str | None = None


class _Fixed(NamedTuple):
    """What is known at compile time."""

    axis: str
    mask: Mask | None
    segmented: bool
    scale: float
    precision: str | None


def ring_attention(
    query: Float[Array, "*batch T H D"],
    key: Float[Array, "*batch S K D"],
    value: Float[Array, "*batch S K D_v"],
    mask: Mask | None = None,
    *,
    mesh: Mesh,
    axis: str,
    batch_axis: str | None = None,
    head_axis: str | None = None,
    segment_ids: Int[Array, "*batch T"] | None = None,
    key_segment_ids: Int[Array, "*batch T"] | None = None,
    scale: float | Array | None = None,
    precision: Any = None,
) -> Float[Array, "*batch T H D_v"]:
    """Compute exact attention with the tokens of one sequence sharded over a mesh axis.

    Memory on each device falls with the number of devices, forward and backward; masked blocks are skipped.

    Args:
        query: `(..., T, H, D)`, T a multiple of the number of devices on the axis.
        key: `(..., T, K, D)`, K divides H.
        value: `(..., T, K, D_v)`.
        mask: `Causal()`, `SlidingWindow(size)`, or None for no mask.
        mesh: the devices.
        axis: the mesh axis over which the tokens are sharded.
        batch_axis: the mesh axis over which the first axis of the arrays is sharded as well.
        head_axis: the mesh axis over which the heads are sharded as well.
        segment_ids: integers `(..., T)`: tokens attend to their own segment alone; None is one segment.
        key_segment_ids: the segments of the keys, where they differ from those of the queries.
        scale: factor on the dot products; None is 1 / sqrt(D).
        precision: of all matrix products, as in `jax.lax.dot_general`.

    Returns:
        The context `(..., T, H, D_v)`, sharded in the same way. It has first derivatives, in reverse mode.

    Raises:
        TypeError: an input is not floating point, or types differ.
        ValueError: shapes do not fit, the mask is not supported, or sizes are not multiples of the mesh's.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import masks, ring_attention
        >>> mesh = jax.make_mesh((len(jax.devices()),), ("tokens",))
        >>> heads = jnp.ones((1, 8 * len(jax.devices()), 2, 4))
        >>> ring_attention(heads, heads, heads, masks.Causal(), mesh=mesh, axis="tokens").shape == heads.shape
        True

    References:
        Liu et al. 2023, "Ring Attention with Blockwise Transformers for Near-Infinite Context".
    """
    call = checked_call(query, key, value, scale=scale, precision=precision)
    _check_mesh(call.query, call.key, mask, mesh, axis, batch_axis, head_axis)
    *batch, T, H, _ = call.query.shape
    shape = (*batch, T, H, call.value.shape[-1])
    if 0 in shape:
        return jnp.zeros(shape, call.value.dtype)
    first = tuple(batch) or (1,)
    # (..., T, H, D) -> (B, ..., T, H, D)
    arrays = [
        array.astype(call.wide).reshape(*first, *array.shape[-3:]) for array in (call.query, call.key, call.value)
    ]
    if segment_ids is None and key_segment_ids is not None:
        raise ValueError("key_segment_ids is given without segment_ids: pass the segments of the queries too")
    ids = _as_ids("segment_ids", 0 if segment_ids is None else segment_ids, (*batch, T)).reshape(*first, T)
    key_ids = ids
    if key_segment_ids is not None:
        key_ids = _as_ids("key_segment_ids", key_segment_ids, (*batch, T)).reshape(*first, T)

    rest = (None,) * (len(first) - 1)
    heads, tokens = PartitionSpec(batch_axis, *rest, axis, head_axis), PartitionSpec(batch_axis, *rest, axis)
    specs = (heads, heads, heads, tokens, tokens)
    fixed = _Fixed(axis, mask, segment_ids is not None, call.scale, call.precision)
    sharded = [_sharded(array, mesh, spec) for array, spec in zip((*arrays, ids, key_ids), specs, strict=True)]
    return _run(fixed, mesh, specs, *sharded).reshape(shape).astype(call.value.dtype)


def _as_ids(name: str, ids: Any, shape: tuple[int, ...]) -> Array:
    """Return segment ids, broadcast to one for each token of each example."""
    ids = as_integers(name, ids)
    if not broadcasts(ids.shape, shape):
        raise ValueError(f"{name} has shape {ids.shape}, but needs one id for each token, {shape}")
    return jnp.broadcast_to(ids, shape)


def _sharded(array: Array, mesh: Mesh, spec: PartitionSpec) -> Array:
    """Shard an array over the mesh; only a mesh with explicit axes needs that."""
    explicit = AxisType.Explicit in mesh.axis_types
    return jax.reshard(array, NamedSharding(mesh, spec)) if explicit else array


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(fixed: _Fixed, mesh: Mesh, specs: tuple[PartitionSpec, ...], *arrays: Array) -> Array:
    ring: Any = functools.partial(_ring, fixed)
    return jax.shard_map(ring, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(fixed: _Fixed, query: Array, key: Array, value: Array, ids: Array, key_ids: Array) -> Array:
    return _forward(fixed, query, key, value, ids, key_ids)[0]


def _forward(fixed: _Fixed, query: Array, key: Array, value: Array, ids: Array, key_ids: Array) -> tuple[Array, Any]:
    def step(state: Any, number: Array) -> Any:
        travellers, context, lse = state
        call = _call(fixed, number, query, ids, *travellers)
        part, part_lse = map_as_batch(forward, call)
        lse, *shares = join(call, lse, part_lse)
        old, new = (jnp.swapaxes(share, -2, -1)[..., None] for share in shares)  # (..., H, T) -> (..., T, H, 1)
        return (_passed_on(fixed.axis, travellers), context * old + part * new, lse), None

    *batch, T, H, _ = query.shape
    start = jnp.zeros((*batch, T, H, value.shape[-1]), query.dtype), LogSumExp.of_no_key((*batch, H, T), query.dtype)
    steps = jnp.arange(lax.axis_size(fixed.axis), dtype=jnp.int32)
    (_, context, lse), _ = lax.scan(step, ((key, value, key_ids), *start), steps)
    return context, (query, key, value, ids, key_ids, context, lse.finite())


def _backward(fixed: _Fixed, residuals: Any, gradient: Array) -> Any:
    query, key, value, ids, key_ids, context, lse = residuals

    def step(state: Any, number: Array) -> Any:
        (key, value, key_ids, of_key, of_value), of_query = state
        call = _call(fixed, number, query, ids, key, value, key_ids)
        part = map_as_batch(backward, call, context, lse, gradient)
        travellers = key, value, key_ids, of_key + part.key, of_value + part.value
        return (_passed_on(fixed.axis, travellers), of_query + part.query), None

    travellers = key, value, key_ids, jnp.zeros_like(key), jnp.zeros_like(value)
    steps = jnp.arange(lax.axis_size(fixed.axis), dtype=jnp.int32)
    (travellers, of_query), _ = lax.scan(step, (travellers, jnp.zeros_like(query)), steps)
    return of_query, *travellers[3:], None, None


_ring.defvjp(_forward, _backward)


def _call(
    fixed: _Fixed, number: Array, query: Array, ids: Array, key: Array, value: Array, key_ids: Array
) -> AttentionCall:
    """Return the call of one step; the keys have travelled `number` devices up, so their positions are lower."""
    n, here = lax.axis_size(fixed.axis), lax.axis_index(fixed.axis)
    offset = (here - (here - number) % n) * key.shape[-3]
    shifted = None if fixed.mask is None else fixed.mask.shifted(offset)
    mask = combine(shifted, Segments(ids, key_ids) if fixed.segmented else None)
    # Blockwise gives the gradients of a softmax over more keys than these: it takes the weights from the lse.
    return checked_call(
        query, key, value, mask, scale=fixed.scale, precision=fixed.precision, implementation="blockwise"
    )


def _passed_on(axis: str, arrays: Any) -> Any:
    n = lax.axis_size(axis)
    return lax.ppermute(arrays, axis, [(i, (i + 1) % n) for i in range(n)])


def _check_mesh(
    query: Array, key: Array, mask: Any, mesh: Mesh, axis: str, batch_axis: str | None, head_axis: str | None
) -> None:
    if mask is not None and not (isinstance(mask, Causal | SlidingWindow) and isinstance(mask.offset, int)):
        raise ValueError(
            f"mask is {mask!r}, but ring attention supports Causal(), SlidingWindow(size) and None: "
            "write segment_ids=ids in place of masks.Segments(ids), and key_segment_ids=key_ids for its key_ids"
        )
    if query.shape[-3] != key.shape[-3]:
        raise ValueError(f"query {query.shape} and key {key.shape} must have the same number of tokens here")
    sizes = {"axis": (axis, query.shape[-3], "tokens"), "head_axis": (head_axis, key.shape[-2], "key heads")}
    if query.ndim > 3:
        sizes["batch_axis"] = (batch_axis, query.shape[0], "examples")
    elif batch_axis is not None:
        raise ValueError(f"batch_axis={batch_axis!r}, but query {query.shape} has no batch: leave it out")
    for argument, (name, number, what) in sizes.items():
        if name is None:
            continue
        if name not in mesh.shape:
            raise ValueError(f"{argument}={name!r} is not an axis of the mesh, which has {', '.join(mesh.axis_names)}")
        if number % mesh.shape[name]:
            raise ValueError(
                f"{number} {what} do not divide evenly among the {mesh.shape[name]} devices of {argument}={name!r}: "
                f"pad to {-(-number // mesh.shape[name]) * mesh.shape[name]}"
            )
