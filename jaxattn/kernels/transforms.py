"""What JAX's transformations do to a call of a kernel that has a forward and a backward function of its own.

    attend(call)
      └ auto_axes           on a mesh with explicit axes: the compiler shards what is inside
        └ jit               compiled once for each shape
          └ custom_vjp      forward keeps the call, its context and its logsumexp; backward returns the gradients
            └ custom_vmap   around forward and around backward: a mapped axis becomes one more batch axis
              └ platform_dependent    traced for each platform, where the choice differs; lowering takes one
                └ choose    now the whole batch is known: the first of KERNELS that supports it
                  └ kernel.forward(call), kernel.backward(call, context, lse, gradient)

Nothing inside is specific to one kernel, and all kernels keep the same residuals: the context and the logsumexp.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes
from jaxtyping import PyTree

from jaxattn.kernels import blockwise, cudnn, dense, native, small
from jaxattn.kernels.call import AttentionCall, Gradients
from jaxattn.kernels.logits import log_sum_exp
from jaxattn.kernels.softmax import LogSumExp
from jaxattn.kernels.tiles import vary_alike


@runtime_checkable
class Kernel(Protocol):
    """What a kernel here has beside `unsupported`; its residuals are the context and the lse."""

    def unsupported(self, call: AttentionCall) -> str | None: ...
    def forward(self, call: AttentionCall) -> tuple[Array, LogSumExp]: ...
    def backward(
        self, call: AttentionCall, context: Array, lse: LogSumExp, gradient: Array, lse_gradient: Array | None = None
    ) -> Gradients: ...


# In order of preference.
KERNELS: dict[str, Kernel] = {"cudnn": cudnn, "native": native, "small": small, "blockwise": blockwise}
# One kernel is chosen, and runs alike, on all platforms that are not named here.
PLATFORMS = ("cpu", "cuda", "default")


def attend(call: AttentionCall) -> tuple[Array, ...]:
    """Return the context `(B, T, H, D_v)`, and the logsumexp `(B, H, T)` if the call asks for it.

    They have first derivatives, in reverse mode.

    Raises:
        TypeError: a derivative in forward mode, or a second one, is taken.
    """
    if 0 in (*call.query.shape, *call.value.shape):
        context = jnp.zeros((*call.query.shape[:-1], call.value.shape[-1]), call.value.dtype)
        return (context, log_sum_exp(call, dense.attend(call).scores)) if call.return_lse else (context,)
    sharding = jax.typeof(call.query).sharding
    run: Callable = _compiled
    if AxisType.Explicit in sharding.mesh.axis_types:
        run = auto_axes(run, out_sharding=_out_sharding(call, sharding))
    try:
        return run(vary_alike(call))
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(
            "this kernel has derivatives in reverse mode (jax.grad, jax.vjp) only, and this asks for forward "
            "mode: write dot_product_attention(..., implementation='dense')"
        ) from error


def _out_sharding(call: AttentionCall, sharding: Any) -> tuple[Any, ...]:
    """Return how the results are sharded: as the query is."""
    axes = [*sharding.spec, *[None] * (call.query.ndim - len(sharding.spec))]
    rows = NamedSharding(sharding.mesh, PartitionSpec(*axes[:-3], axes[-2], axes[-3]))
    return (sharding, rows) if call.return_lse else (sharding,)


def forward(call: AttentionCall) -> tuple[Array, LogSumExp]:
    """Return the context and the logsumexp, from the first kernel that supports the call."""
    return _on_each_platform(lambda call: KERNELS[choose(call)].forward(call), call)


def backward(
    call: AttentionCall, context: Array, lse: LogSumExp, gradient: Array, lse_gradient: Array | None = None
) -> Gradients:
    """Return the gradients, from the first kernel that supports the call."""
    arrays = context, lse, gradient, lse_gradient
    return _on_each_platform(lambda call, *arrays: KERNELS[choose(call)].backward(call, *arrays), call, *arrays)


def choose(call: AttentionCall) -> str:
    """Return the name of the kernel that the call asks for, or of the first that supports it."""
    if call.implementation is not None:
        return call.implementation
    return next(name for name, kernel in KERNELS.items() if kernel.unsupported(call) is None)


def _on_each_platform(function: Callable[..., PyTree], call: AttentionCall, *arrays: PyTree) -> PyTree:
    """Call `function(call, *arrays)` on the platform that the program is lowered for."""
    calls = {platform: dataclasses.replace(call, platform=platform) for platform in PLATFORMS}
    chosen = {platform: choose(one) for platform, one in calls.items()}
    if len({*chosen.values()}) == 1 and "blockwise" not in chosen.values():  # others compute alike everywhere
        return function(call, *arrays)
    if chosen["cuda"] == chosen["default"]:
        del calls["cuda"]

    def branch(one: AttentionCall) -> Callable[..., PyTree]:
        return lambda call, *arrays: function(dataclasses.replace(call, platform=one.platform), *arrays)

    return lax.platform_dependent(call, *arrays, **{platform: branch(one) for platform, one in calls.items()})


@jax.jit
def _compiled(call: AttentionCall) -> tuple[Array, ...]:
    return _differentiable(call)


@jax.custom_vjp
def _differentiable(call: AttentionCall) -> tuple[Array, ...]:
    return _results(call, *map_as_batch(forward, call))


def _results(call: AttentionCall, context: Array, lse: LogSumExp) -> tuple[Array, ...]:
    return (context, lse.natural(call)) if call.return_lse else (context,)


def _forward(call: AttentionCall) -> tuple[tuple[Array, ...], Any]:
    call = _guarded(call)
    context, lse = map_as_batch(forward, call)
    return _results(call, context, lse), (call, context, lse.finite())


def _backward(residuals: Any, of_results: tuple[Array, ...]) -> tuple[AttentionCall]:
    call, context, lse, gradient, *of_lse = _guarded((*residuals, *of_results))
    if call.return_lse:
        of_lse = [lse.of_some_key(of_lse[0])]
    gradients = map_as_batch(backward, call, context, lse, gradient, *of_lse)
    empty: Any = dict.fromkeys(("mask", "row_bits", "column_bits"))
    return (dataclasses.replace(call, **gradients._asdict(), **empty),)


_differentiable.defvjp(_forward, _backward)


def _guarded(tree: PyTree) -> PyTree:
    """Return a tree whose numbers have no further derivative, so that asking for one is an error that says so."""
    leaves, structure = jax.tree.flatten(tree)
    is_number = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    guarded = iter(_first_derivative_only(*(leaf for leaf, guards in zip(leaves, is_number, strict=True) if guards)))
    leaves = [next(guarded) if guards else leaf for leaf, guards in zip(leaves, is_number, strict=True)]
    return jax.tree.unflatten(structure, leaves)


@jax.custom_jvp
def _first_derivative_only(*arrays: Array) -> tuple[Array, ...]:
    return arrays


@_first_derivative_only.defjvp
def _(primals: Any, tangents: Any) -> Any:
    raise TypeError(
        "this kernel has first derivatives only, and this asks for second ones: "
        "write dot_product_attention(..., implementation='dense')"
    )


def map_as_batch(function: Callable[..., PyTree], call: AttentionCall, *arrays: PyTree) -> PyTree:
    """Call `function(call, *arrays)`; under `vmap`, the mapped axis becomes the first batch axis of all arrays.

    Arrays that are not mapped get an axis of 1 there, and are not copied.
    """
    leaves, structure = jax.tree.flatten((call, *arrays))

    @jax.custom_batching.custom_vmap
    def run(*leaves: Array) -> PyTree:
        return function(*jax.tree.unflatten(structure, leaves))

    @run.def_vmap
    def _(size: int, are_mapped: Any, *leaves: Array) -> Any:
        leaves = tuple(leaf if mapped else leaf[None] for leaf, mapped in zip(leaves, are_mapped, strict=True))
        call, *arrays = jax.tree.unflatten(structure, leaves)
        call = dataclasses.replace(call, mapped_axes=call.mapped_axes + 1)
        if call.batch[0] != size:  # the gradient alone is mapped
            call = dataclasses.replace(call, query=jnp.broadcast_to(call.query, (size, *call.query.shape[1:])))
        results = map_as_batch(function, call, *arrays)
        return results, jax.tree.map(lambda _: True, results)

    return run(*leaves)
