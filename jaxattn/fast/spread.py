"""Examples and heads on different devices: each device computes its own, without asking the others for keys.

Under `jit` the compiler splits a program over the devices that its inputs lie on. It cannot see that the blocks of the
loops in `forward.py` and `backward.py` never mix examples or heads, and would gather all keys everywhere. So it is
told: these two passes may be cut along the examples and the key heads, and along nothing else.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, auto_axes


def spread_over_devices(function: Callable) -> Callable:
    """Wrap `forward_pass` or `backward_pass`: `function(settings, query, key, value, cells, ...)`."""
    wrapped = custom_partitioning(function, static_argnums=(0,))
    wrapped.def_partition(
        partition=functools.partial(_partition, function),
        sharding_rule=_rule,
        decode_shardings=True,
    )
    return wrapped


def let_compiler_spread(function: Callable, query: Array) -> Callable:
    """Wrap a function from heads to context: where the mesh has explicit axes, its inside is left to the compiler."""
    laid = jax.typeof(query).sharding
    if AxisType.Explicit not in laid.mesh.axis_types:
        return function
    return auto_axes(function, out_sharding=laid)


def vary_alike(arguments: Any) -> Any:
    """Inside `jax.shard_map`, let every array differ between devices along all axes along which any of them does."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return arguments
    firsts = jnp.stack([leaf.ravel()[0].astype(jnp.float32) for leaf in jax.tree.leaves(arguments)])
    never = jnp.isnan(firsts).all()
    return jax.tree.map(lambda leaf: jnp.where(never, leaf, leaf), arguments)


def _partition(function: Callable, settings: Any, mesh: Mesh, arguments: Any, results: Any) -> Any:
    """Say how arguments and results lie, and what each device computes: the same function, on its share."""
    query, key = arguments[:2]
    B, K = query.shape[0], key.shape[2]
    spec = (*query.sharding.spec, None, None, None)
    examples, heads = _if_even(mesh, spec[0], B), _if_even(mesh, spec[2], K)

    def sharding(array: Any) -> NamedSharding:
        axes: tuple[Any, ...] = (None,) * len(array.shape)
        if len(array.shape) == 4:
            axes = (examples, None, heads, None)
        elif len(array.shape) == 3:
            axes = (examples, heads, None)
        else:
            axes = (examples if array.shape[0] == B else None, heads if array.shape[1] == K else None, *axes[2:])
        return NamedSharding(mesh, PartitionSpec(*axes))

    def on_each(*shares: Any) -> Any:
        *results, last = function(settings, *shares)
        bias = shares[3].bias
        if len(results) == 3 and bias is not None:
            # What one bias gave to examples and heads on several devices adds up.
            apart = [
                axes
                for axes, n, whole in zip((examples, heads), arguments[3].bias.shape[:2], (B, K), strict=True)
                if axes and n != whole
            ]
            last = lax.psum(
                last, tuple(name for axes in apart for name in ((axes,) if isinstance(axes, str) else axes))
            )
        return *results, last

    return mesh, on_each, jax.tree.map(sharding, results), jax.tree.map(sharding, arguments)


def _if_even(mesh: Mesh, axes: Any, number: int) -> Any:
    names = () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
    devices = 1
    for name in names:
        devices *= mesh.shape[name]
    return axes if names and number % devices == 0 else None


def _rule(settings: Any, mesh: Mesh, arguments: Any, results: Any) -> Any:
    """Name the axes: b and k may be cut; those of one name are cut alike."""
    shapes = [list(value.shape) for value in arguments]
    (B, T, H, D), (_, S, K, _) = shapes[:2]
    heads = "k" if H == K else "(k g)"
    ones = iter(range(1000))

    def cells(shape: list[int]) -> str:
        names = zip("bkgts", shape, (B, K, H // K, T, S), strict=True)
        return " ".join(name if n == whole else f"one{next(ones)}" for name, n, whole in names)

    def axes(shape: list[int], like_query: bool) -> str:
        if len(shape) == 5:
            return cells(shape)
        if len(shape) == 3:
            return f"b {heads} t"
        width = "d" if shape[3] == D else "e"
        return f"b t {heads} {width}" if like_query else f"b s k {width}"

    forward = len(results) == 2
    operands = [axes(shape, index not in (1, 2)) for index, shape in enumerate(shapes)]
    outputs = [axes(list(value.shape), forward or index == 0) for index, value in enumerate(results)]
    rule = ", ".join(operands) + " -> " + ", ".join(outputs)
    # In the order in which they first stand in the rule.
    names = dict.fromkeys(name.strip(",") for name in rule.split())
    whole = {"need_replication_factors": tuple(name for name in names if name in ("t", "s", "d", "e"))}
    # Sizes belong to names that stand nowhere alone.
    return rule, whole | ({} if H == K or "g" in names else {"g": H // K})
