"""The arguments of `ring_attention`, checked against the mesh."""

from typing import Any, get_args

import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from jaxattn.checks import as_integers, broadcasts
from jaxattn.kernels.call import AttentionCall
from jaxattn.masks import Segments
from jaxattn.ring.order import Order


def segments(ids: Any, key_ids: Any, queries: tuple[int, ...], keys: tuple[int, ...]) -> Segments | None:
    """Return the mask of segment ids, for queries `(..., T)` and keys `(..., S)`."""
    if ids is None:
        if key_ids is not None:
            raise ValueError("key_segment_ids is given without segment_ids: pass the segments of the queries too")
        return None
    return Segments(
        _ids("segment_ids", ids, queries), None if key_ids is None else _ids("key_segment_ids", key_ids, keys)
    )


def _ids(name: str, ids: Any, shape: tuple[int, ...]) -> Any:
    """Return segment ids, one for each token."""
    ids = as_integers(name, ids)
    if not broadcasts(ids.shape, shape):
        raise ValueError(f"{name} has shape {ids.shape}, but needs one id for each token, {shape}")
    return jnp.broadcast_to(ids, (*ids.shape[:-1], shape[-1]))


def check_mesh(
    call: AttentionCall,
    mesh: Mesh,
    strategy: Any,
    order: Any,
    axes: dict[str, str | None],
) -> None:
    """Check the mesh, the strategy, the order and the axes, `axes` by the names of their arguments."""
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise TypeError(
            f"mesh is {mesh!r}, but must be a jax.sharding.Mesh: write jax.make_mesh((jax.device_count(),), "
            "('tokens',))"
        )
    _check_choice("strategy", strategy, ("ring", "all_gather", "all_to_all"))
    _check_choice("order", order, get_args(Order))
    T, S, _, K = call.sizes
    chunks = 2 if order == "zigzag" else 1
    _check_axes(mesh, axes)
    _check_even(mesh, axes, "axis", T, "queries" if T != S else "tokens", chunks)
    _check_even(mesh, axes, "axis", S, "keys", chunks)
    _check_even(mesh, axes, "head_axis", K, "KV heads")
    if axes["batch_axis"] is not None:
        if call.query.ndim == 3:
            raise ValueError(
                f"batch_axis={axes['batch_axis']!r}, but query {call.query.shape} has no batch: leave it out"
            )
        _check_even(mesh, axes, "batch_axis", call.query.shape[0], "examples")
    if strategy == "all_to_all":
        _check_heads(call, mesh, axes)


def _check_choice(name: str, choice: Any, allowed: tuple[str, ...]) -> None:
    if choice not in allowed:
        known = ", ".join(repr(one) for one in allowed)
        raise ValueError(f"{name}={choice!r} is not known: write one of {known}")


def _check_axes(mesh: Mesh, axes: dict[str, str | None]) -> None:
    """Check that each axis is one of the mesh, and used once."""
    used: dict[Any, str] = {}
    for argument, name in axes.items():
        if name is None and argument != "axis":
            continue
        if name not in mesh.shape:
            raise ValueError(f"{argument}={name!r} is not an axis of the mesh, which has {', '.join(mesh.axis_names)}")
        if name in used:
            raise ValueError(
                f"{used[name]} and {argument} are both {name!r}: give each an axis of its own, or leave {argument} out"
            )
        used[name] = argument


def _check_even(
    mesh: Mesh, axes: dict[str, str | None], argument: str, number: int, what: str, chunks: int = 1
) -> None:
    name = axes[argument]
    if name is None:
        return
    devices = mesh.shape[name]
    if number % (devices * chunks):
        twice = " in two chunks each, as order='zigzag' needs" if chunks == 2 else ""
        raise ValueError(
            f"{number} {what} do not divide evenly among the {devices} devices of {argument}={name!r}{twice}: pad to "
            f"{-(-number // (devices * chunks)) * devices * chunks}"
        )


def _check_heads(call: AttentionCall, mesh: Mesh, axes: dict[str, str | None]) -> None:
    """Check that "all_to_all" can share out the heads."""
    shared = 1 if axes["head_axis"] is None else mesh.shape[axes["head_axis"]]
    n, (_, _, H, K) = mesh.shape[axes["axis"]], call.sizes
    if (H // shared) % n or ((K // shared) % n and n % (K // shared)):
        each = f" on each of the {shared} devices of head_axis" if shared > 1 else ""
        raise ValueError(
            f"strategy='all_to_all' shares {H // shared} query heads and {K // shared} KV heads{each} out among the "
            f"{n} devices of axis={axes['axis']!r}, and they do not divide evenly: write strategy='ring' or "
            "'all_gather'"
        )
