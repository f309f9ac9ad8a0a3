"""How parameters and batches are laid out over a mesh with the axes "data", "model" and "seq".

"data" splits the batch. "model" splits the heads and the width of the feed-forward layers (Shoeybi et al. 2019,
"Megatron-LM"). "seq" splits the tokens of each sequence, by ring attention.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxattn.ring import Ring

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


def make_ring(mesh: Mesh) -> Ring | None:
    """Return the ring of ring attention, if the mesh splits sequences."""
    if mesh.shape["seq"] == 1:
        return None
    return Ring(mesh, "seq", head_axis="model" if mesh.shape["model"] > 1 else None)


def state_sharding(mesh: Mesh, state: Tree) -> Tree:
    """Return the sharding of each array of a training state, by the name of its layer."""

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        names = {getattr(step, "key", None) for step in path}
        spec: tuple[Any, ...] = (None,) * leaf.ndim
        if leaf.ndim and names & COLUMNS:
            spec = (*spec[:-1], "model")
        elif leaf.ndim > 1 and names & ROWS:
            spec = (*spec[:-2], "model", None)
        return NamedSharding(mesh, PartitionSpec(*spec))

    shardings: Tree = jax.tree_util.tree_map_with_path(sharding, state)
    return shardings


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(mesh: Mesh, arrays: Tree, axis: int = 0) -> Tree:
    """Put host arrays on the devices, their axis of examples split over "data"; every process has all of them."""
    sharding = NamedSharding(mesh, PartitionSpec(*(None,) * axis, "data"))
    sharded: Tree = jax.tree.map(
        lambda array: jax.make_array_from_callback(array.shape, sharding, lambda index: array[index]), arrays
    )
    return sharded


def gather_to_host(mesh: Mesh, tree: Tree) -> Tree:
    """Return whole NumPy arrays, in every process, of arrays that may be split over the devices."""
    gathered: Tree = jax.tree.map(np.asarray, _gather(mesh)(tree))
    return gathered


@functools.cache
def _gather(mesh: Mesh) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
