"""How parameters and batches are laid out over a mesh with the axes "data", "model" and "seq".

"data" splits the batch. "model" splits the heads and the width of the feed-forward layers (Shoeybi et al. 2019,
"Megatron-LM"). "seq" splits the tokens of each sequence, by ring attention.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxattn.ring import Ring
from jaxattn.training.batches import Batch, fill_up
from jaxattn.training.optimizer import STACK

Tree = TypeVar("Tree")

# The layers whose kernels are split by column or by row over "model"; everything else is replicated.
COLUMNS, ROWS = {"query", "key", "value", "expand"}, {"out", "contract"}


def sum_over_data(mesh: Mesh, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Split the examples over "data", apply `function(params, examples)` to each split, and sum the results.

    If "data" is the only axis that splits anything, each device runs the function by itself and the results are summed
    once, at the end. Otherwise the compiler distributes the work of each split over the other axes.
    """
    if mesh.size == mesh.shape["data"]:
        # Without check_vma, params are constants on each device and no gradient is summed before the end.
        return jax.shard_map(
            lambda params, examples: jax.lax.psum(function(params, examples), "data"),
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec("data")),
            out_specs=PartitionSpec(),
            check_vma=False,
        )

    def split_by_compiler(params: Any, examples: Any) -> Any:
        # (B, ...) -> (devices along data, B / devices, ...)
        groups = jax.tree.map(lambda x: x.reshape(mesh.shape["data"], -1, *x.shape[1:]), examples)
        results = jax.vmap(function, in_axes=(None, 0), spmd_axis_name="data")(params, groups)
        return jax.tree.map(lambda x: x.sum(0), results)

    return split_by_compiler


def make_ring(mesh: Mesh, kv_heads: int) -> Ring | None:
    """Return the ring of ring attention, if the mesh splits sequences.

    Where "model" does not divide the KV heads, each of its devices attends with all heads.
    """
    if mesh.shape["seq"] == 1:
        return None
    is_split = mesh.shape["model"] > 1 and kv_heads % mesh.shape["model"] == 0
    return Ring(mesh, "seq", head_axis="model" if is_split else None)


def state_sharding(mesh: Mesh, state: Tree, shard_parameters: bool = False) -> Tree:
    """Return the sharding of each array of a training state, by the name of its layer.

    With `shard_parameters`, arrays are also sharded over "data": along the longest axis that it divides and that is not
    split yet, or else further along one that is. An array without such an axis, as the number of the step, is
    replicated.
    """

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        names = {getattr(step, "key", None) for step in path}
        spec: list[Any] = [None] * leaf.ndim
        split = -1 if names & COLUMNS else -2 if names & ROWS else 0
        if -leaf.ndim <= split < 0 and leaf.shape[split] % mesh.shape["model"] == 0:
            spec[split] = "model"
        if shard_parameters:
            _shard_over_data(mesh, spec, leaf.shape, is_stack=any(str(name).startswith(STACK) for name in names))
        return NamedSharding(mesh, PartitionSpec(*spec))

    shardings: Tree = jax.tree_util.tree_map_with_path(sharding, state)
    return shardings


def _shard_over_data(mesh: Mesh, spec: list[Any], shape: tuple[int, ...], is_stack: bool) -> None:
    # JAX's arrays have equal shards.
    parts = [mesh.shape["data"] * (1 if axis is None else mesh.shape[axis]) for axis in spec]
    divisible = [i for i, size in enumerate(shape) if size and size % parts[i] == 0]
    if divisible:
        # Of a stack of matrices, each device has whole ones if it can: the optimizer shares out the work so.
        chosen = max(divisible, key=lambda i: (is_stack and i == 0, spec[i] is None, shape[i]))
        spec[chosen] = "data" if spec[chosen] is None else (spec[chosen], "data")


def axis_over_data(sharding: NamedSharding) -> int | None:
    """Return which axis of an array is split over "data"."""
    return next((i for i, axis in enumerate(sharding.spec) if axis == "data" or axis == ("model", "data")), None)


def gathered_over_data(sharding: NamedSharding) -> NamedSharding:
    """Return the sharding over the other axes alone."""
    without: dict[Any, str | None] = {"data": None, ("model", "data"): "model"}
    return NamedSharding(sharding.mesh, PartitionSpec(*(without.get(axis, axis) for axis in sharding.spec)))


def bytes_per_device(tree: Any) -> list[int]:
    """Return how many bytes of these arrays each device of this process holds, by the number of the device."""
    held: dict[int, int] = {}
    for array in jax.tree.leaves(tree):
        for shard in array.addressable_shards:
            held[shard.device.id] = held.get(shard.device.id, 0) + shard.data.nbytes
    return [held[device] for device in sorted(held)]


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(mesh: Mesh, batch: Batch, axis: int = 0) -> Batch:
    """Put a batch on the devices, its axis of examples split over "data"; every process has all of it.

    If the devices do not divide the examples, the last ones get sequences without a loss.
    """
    batch = fill_up(batch, examples_per_device(mesh, batch.tokens.shape[axis]) * mesh.shape["data"], axis)
    sharding = NamedSharding(mesh, PartitionSpec(*(None,) * axis, "data"))
    sharded: Batch = jax.tree.map(
        lambda array: jax.make_array_from_callback(array.shape, sharding, lambda index: array[index]), batch
    )
    return sharded


def examples_per_device(mesh: Mesh, batch_size: int) -> int:
    """Return how many examples of a batch a device has along "data"."""
    return -(-batch_size // mesh.shape["data"])


def gather_to_main_process(mesh: Mesh, tree: Tree) -> Tree | None:
    """Return whole NumPy arrays in the main process, None in the others; all processes must call this.

    One array at a time is gathered, so no device ever has all of them.
    """
    leaves, structure = jax.tree.flatten(tree)
    gathered = [_gather_one(mesh, leaf) for leaf in leaves]
    return jax.tree.unflatten(structure, gathered) if jax.process_index() == 0 else None


def _gather_one(mesh: Mesh, array: Array) -> np.ndarray | None:
    if not (array.is_fully_addressable or array.is_fully_replicated):
        array = _replicate(mesh)(array)
    return np.array(array) if jax.process_index() == 0 else None


@functools.cache
def _replicate(mesh: Mesh) -> Any:
    return jax.jit(lambda array: array, out_shardings=replicated(mesh))
