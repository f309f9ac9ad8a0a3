"""Sequences longer than one device holds: each device keeps its queries, and keys and values travel around a ring.

At each of n steps a device attends to the keys that have just arrived and passes them on. What it has so far and what
it adds are averages under exponentials with known sums, so the two combine exactly. Backward, the gradients of keys
and values travel along with them and come home after the last step (Liu et al. 2023, "Ring Attention").
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from jaxattn.attention import check_call
from jaxattn.fast.blockwise import backward_pass, forward_pass, over_examples
from jaxattn.fast.cells import Settings, gather_cells
from jaxattn.functional import wide_type
from jaxattn.masks import Causal, Mask, Segments, SlidingWindow, both


class Ring(NamedTuple):
    """Where `ring_attention` finds its devices; the fields are its arguments of the same names."""

    mesh: Mesh
    axis: str
    batch_axis: str | None = None
    head_axis: str | None = None


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
    scale: float | None = None,
) -> Float[Array, "*batch T H D_v"]:
    """Attend exactly with the tokens of one sequence spread over the devices of a mesh axis.

    Memory on each device falls with the number of devices, forward and backward; blocks that a mask hides are skipped.

    Args:
        query: `(..., T, H, D)`, T a multiple of the number of devices on the axis.
        key: `(..., T, K, D)`, K divides H.
        value: `(..., T, K, D_v)`.
        mask: `Causal()`, `SlidingWindow(size)`, or None for everyone.
        mesh: the devices.
        axis: the name of the mesh axis over which the tokens are spread.
        batch_axis: the mesh axis over which the first axis is spread as well; None is none.
        head_axis: the mesh axis over which heads are spread as well; None is none.
        segment_ids: whole numbers `(..., T)`: tokens see their own segment alone; None is one for all.
        scale: factor on the dot products; None is 1 / sqrt(D).

    Returns:
        The context `(..., T, H, D_v)`, spread in the same way. It has first derivatives, in reverse mode.

    Raises:
        TypeError: an input is not floating point, or types differ.
        ValueError: shapes clash, the mask is another one, or sizes are not multiples of the mesh's.

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
    call = check_call(query, key, value, None, scale)
    _check_mesh(call.query, call.key, mask, mesh, axis, batch_axis, head_axis)
    if not isinstance(call.scale, int | float):
        raise TypeError(f"scale is {call.scale!r}, but must be a plain number here: multiply the query by it instead")
    *batch, T, H, _ = call.query.shape
    wide = wide_type(call.query.dtype)
    first = tuple(batch) or (1,)
    # (..., T, H, D) -> (B, ..., T, H, D)
    arrays = [array.astype(wide).reshape(*first, *array.shape[-3:]) for array in (call.query, call.key, call.value)]
    ids = jnp.zeros((*first, T), jnp.int32) if segment_ids is None else jnp.asarray(segment_ids).reshape(*first, T)

    rest = (None,) * (len(first) - 1)
    heads, tokens = PartitionSpec(batch_axis, *rest, axis, head_axis), PartitionSpec(batch_axis, *rest, axis)
    specs = (heads, heads, heads, tokens)
    settings = Settings(float(call.scale), 0.0, None if mask is None else mask.reach(), None)
    run: Any = jax.shard_map(
        functools.partial(_on_each, settings, axis, mask, segment_ids is not None),
        mesh=mesh,
        in_specs=specs,
        out_specs=heads,
        check_vma=False,
    )
    spread = [_spread(array, mesh, spec) for array, spec in zip((*arrays, ids), specs, strict=True)]
    return run(*spread).reshape(*batch, T, H, value.shape[-1]).astype(call.query.dtype)


def _spread(array: Array, mesh: Mesh, spec: PartitionSpec) -> Array:
    """Lay an array out over the mesh; only a mesh of explicit axes wants that said."""
    explicit = AxisType.Explicit in mesh.axis_types
    return jax.reshard(array, NamedSharding(mesh, spec)) if explicit else array


def _on_each(
    settings: Settings,
    axis: str,
    mask: Mask | None,
    segmented: bool,
    query: Array,
    key: Array,
    value: Array,
    ids: Array,
) -> Array:
    *batch, _, _, _ = query.shape
    flat = [array.reshape(-1, *array.shape[-3:]) for array in (query, key, value)]
    context = _ring(settings, axis, mask, segmented, *flat, ids.reshape(-1, ids.shape[-1]))
    return context.reshape(*batch, *context.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _ring(
    settings: Settings,
    axis: str,
    mask: Mask | None,
    segmented: bool,
    query: Array,
    key: Array,
    value: Array,
    ids: Array,
) -> Array:
    return _forward(settings, axis, mask, segmented, query, key, value, ids)[0]


def _forward(
    settings: Settings,
    axis: str,
    mask: Mask | None,
    segmented: bool,
    query: Array,
    key: Array,
    value: Array,
    ids: Array,
) -> tuple[Array, Any]:
    B, T, H, _ = query.shape

    def step(state: Any, number: Array) -> Any:
        travellers, context, log_sums = state
        key, value, key_ids = travellers
        cells = _cells(axis, number, mask, segmented, query, key, ids, key_ids)
        part, part_sums = over_examples(forward_pass, settings, (query, key, value, cells))
        part_sums = jnp.where(jnp.isposinf(part_sums), -jnp.inf, part_sums)  # rows that saw nothing
        total = jnp.logaddexp2(log_sums, part_sums)
        seen = jnp.where(jnp.isneginf(total), 0, total)
        # (B, H, T) -> (B, T, H, 1)
        old, new = (jnp.swapaxes(jnp.exp2(sums - seen), 1, 2)[..., None] for sums in (log_sums, part_sums))
        return (_passed_on(axis, travellers), context * old + part * new, total), None

    start = jnp.zeros((B, T, H, value.shape[-1]), query.dtype), jnp.full((B, H, T), -jnp.inf, query.dtype)
    steps = jnp.arange(lax.axis_size(axis))
    (_, context, log_sums), _ = lax.scan(step, ((key, value, ids), *start), steps)
    log_sums = jnp.where(jnp.isneginf(log_sums), jnp.inf, log_sums)
    return context, (query, key, value, ids, context, log_sums)


def _backward(settings: Settings, axis: str, mask: Mask | None, segmented: bool, saved: Any, gradient: Array) -> Any:
    query, key, value, ids, context, log_sums = saved

    def step(state: Any, number: Array) -> Any:
        (key, value, key_ids, key_gradient, value_gradient), query_gradient = state
        cells = _cells(axis, number, mask, segmented, query, key, ids, key_ids)
        arguments = (query, key, value, cells, context, log_sums, gradient)
        shares = over_examples(backward_pass, settings, arguments)
        travellers = key, value, key_ids, key_gradient + shares[1], value_gradient + shares[2]
        return (_passed_on(axis, travellers), query_gradient + shares[0]), None

    travellers = key, value, ids, jnp.zeros_like(key), jnp.zeros_like(value)
    steps = jnp.arange(lax.axis_size(axis))
    (travellers, query_gradient), _ = lax.scan(step, (travellers, jnp.zeros_like(query)), steps)
    return query_gradient, *travellers[3:], None


_ring.defvjp(_forward, _backward)


def _cells(
    axis: str, number: Array, mask: Mask | None, segmented: bool, query: Array, key: Array, ids: Array, key_ids: Array
) -> Any:
    """What the keys that have travelled `number` steps show; before them stand those of lower devices."""
    n, here = lax.axis_size(axis), lax.axis_index(axis)
    ahead = (here - (here - number) % n) * key.shape[1]
    moved = None if mask is None else mask.shifted(ahead)
    shown = both(moved, Segments(ids, key_ids) if segmented else None)
    shape = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
    return gather_cells(shape, key.shape[2], None if shown is None else shown.with_heads(), None, 0.0, None, False)


def _passed_on(axis: str, arrays: Any) -> Any:
    n = lax.axis_size(axis)
    return lax.ppermute(arrays, axis, [(i, (i + 1) % n) for i in range(n)])


def _check_mesh(
    query: Array, key: Array, mask: Any, mesh: Mesh, axis: str, batch_axis: str | None, head_axis: str | None
) -> None:
    if mask is not None and not (isinstance(mask, Causal | SlidingWindow) and isinstance(mask.offset, int)):
        raise ValueError(
            f"mask is {mask!r}, but only Causal(), SlidingWindow(size) and None know positions on every device: "
            "write segment_ids=ids in place of masks.Segments(ids)"
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
            raise ValueError(f"{argument}={name!r} is no axis of the mesh, which has {', '.join(mesh.axis_names)}")
        if number % mesh.shape[name]:
            raise ValueError(
                f"{number} {what} do not divide evenly among the {mesh.shape[name]} devices of {argument}={name!r}: "
                f"pad to {-(-number // mesh.shape[name]) * mesh.shape[name]}"
            )
