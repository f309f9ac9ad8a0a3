"""The sum of a loss over all examples, and its gradients: over microbatches in order, and over devices in parallel.

With replicated parameters, each device sums the gradients of its microbatches, and the devices are summed at the end.
With parameters sharded over "data", a device gathers a layer when it needs it and drops it at once, in the forward and
again in the backward pass, and keeps its own shard of the summed gradient (Rajbhandari et al. 2020, "ZeRO"; Zhao et al.
2023, "PyTorch FSDP"). On CPUs, XLA gathers all layers at the beginning of a step and keeps them until its end.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxattn.training.sharding import axis_over_data, gathered_over_data, state_sharding, sum_over_data

# `(params, examples) -> summed loss`, and `(params, examples) -> (summed loss, gradients)`.
Loss = Callable[[Any, Any], Array]
LossAndGradients = Callable[[Any, Any], tuple[Array, Any]]
# What makes a layer whole; in the backward pass it is made whole once more, not kept.
GATHERS = ("all_gather", "sharding_constraint")


def make_loss_and_gradients(
    loss: Loss, mesh: Mesh, microbatches: int, shard_parameters: bool = False
) -> LossAndGradients:
    """Return a function of parameters and examples, each of which `loss` can split along its first axis."""
    if not shard_parameters or mesh.shape["data"] == 1:
        return sum_over_data(mesh, lambda params, examples: _accumulate(loss, params, _split(microbatches, examples)))
    by_devices = _on_each_device if mesh.size == mesh.shape["data"] else _by_compiler

    def loss_and_gradients(params: Any, examples: Any) -> tuple[Array, Any]:
        shardings = state_sharding(mesh, params, shard_parameters)
        result: tuple[Array, Any] = by_devices(loss, mesh, microbatches, shardings)(params, examples)
        return result

    return loss_and_gradients


def _accumulate(loss: Loss, params: Any, microbatches: Any) -> tuple[Array, Any]:
    """Sum the losses and their gradients over microbatches, stacked along the first axis, one at a time."""

    def add(sums: Any, microbatch: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, jax.value_and_grad(loss)(params, microbatch)), None

    zeros = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params)
    return lax.scan(add, zeros, microbatches)[0]


def _split(microbatches: int, examples: Any) -> Any:
    """Split the examples: (B, ...) -> (microbatches, B / microbatches, ...)."""
    return jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), examples)


def _on_each_device(loss: Loss, mesh: Mesh, microbatches: int, shardings: Any) -> LossAndGradients:
    """Let each device run the loss by itself, on its own examples."""

    def gather(shard: Array, sharding: NamedSharding) -> Array:
        axis = axis_over_data(sharding)
        return shard if axis is None else lax.all_gather(shard, "data", axis=axis, tiled=True)

    def total(gradient: Array, sharding: NamedSharding) -> Array:
        # The derivative of all_gather has summed the gradients of what is sharded.
        return lax.psum(gradient, "data") if axis_over_data(sharding) is None else gradient

    def on_device(shards: Any, examples: Any) -> tuple[Array, Any]:
        gathered = _with_gather(loss, gather, shardings)
        summed, gradients = _accumulate(gathered, shards, _split(microbatches, examples))
        return lax.psum(summed, "data"), jax.tree.map(total, gradients, shardings)

    specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
    # Without check_vma, no gradient of what is replicated is summed before the end.
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(specs, PartitionSpec("data")),
        out_specs=(PartitionSpec(), specs),
        check_vma=False,
    )


def _by_compiler(loss: Loss, mesh: Mesh, microbatches: int, shardings: Any) -> LossAndGradients:
    """Let the compiler distribute the loss over the other axes of the mesh."""
    devices = mesh.shape["data"]

    def summed(params: Any, examples: Any) -> Array:
        return jax.vmap(loss, in_axes=(None, 0), spmd_axis_name="data")(params, examples).sum()

    def loss_and_gradients(params: Any, examples: Any) -> tuple[Array, Any]:
        # (B, ...) -> (microbatches, devices along data, B / devices / microbatches, ...)
        groups = jax.tree.map(lambda x: x.reshape(devices, microbatches, -1, *x.shape[1:]).swapaxes(0, 1), examples)
        return _accumulate(_with_gather(summed, _constrained, shardings), params, groups)

    return loss_and_gradients


def _with_gather(loss: Loss, gather: Callable[[Array, NamedSharding], Array], shardings: Any) -> Loss:
    """Gather the parameters of a loss, without keeping them for the backward pass."""

    def gathered(shards: Any, examples: Any) -> Array:
        return loss(jax.tree.map(gather, shards, shardings), examples)

    if jax.tree.leaves(shardings)[0].mesh.devices.flat[0].platform == "cpu":
        return gathered  # On CPUs, XLA gathers all layers before it computes: gathering twice takes more memory.
    return jax.checkpoint(gathered, policy=lambda primitive, *_, **__: str(primitive) not in GATHERS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _constrained(array: Array, sharding: NamedSharding) -> Array:
    """Let the compiler gather an array over "data", and sum its gradient into shards."""
    return lax.with_sharding_constraint(array, gathered_over_data(sharding))


_constrained.defvjp(
    lambda array, sharding: (_constrained(array, sharding), None),
    lambda sharding, _, gradient: (lax.with_sharding_constraint(gradient, sharding),),
)
