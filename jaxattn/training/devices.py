"""Many devices, one program: which axes the devices form, and how parameters and batches lie on them.

The compiler does the rest (`jax.sharding`): "data" splits the batch, "model" the heads and the feed-forward layers'
width (Shoeybi et al. 2019, "Megatron-LM"), "seq" the tokens of each sequence, by ring attention.
"""

import functools
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxattn.ring import Ring

AXES = ("data", "model", "seq")
# How the last two axes of what these layers learn are split; all else is whole on every device.
COLUMNS, ROWS = ("query", "key", "value", "expand"), ("out", "contract")


# What the usual launchers tell each of several processes that they start.
LAUNCHERS = {"SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"}


def use_all_cores() -> None:
    """Make each of this machine's cores a device of its own; call it before JAX makes its first array.

    A core that works through sequences of its own never waits for the others until the step's end.
    """
    told = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices < 0 and not told:  # type: ignore[attr-defined]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        jax.config.update("jax_num_cpu_devices", cores)


def join_processes(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Join the other processes that train together: as told, or as a launcher's environment says, or nobody.

    Raises:
        ValueError: only some of the three are given.
    """
    told = (coordinator, processes, process)
    if any(value is not None for value in told):
        if None in told:
            raise ValueError("--coordinator HOST:PORT, --processes N and --process I belong together: give all three")
        jax.distributed.initialize(coordinator, processes, process)
    elif any(os.environ.get(name, "1") not in ("", "1") for name in LAUNCHERS):
        jax.distributed.initialize()


def parse_mesh(text: str) -> dict[str, int]:
    """Read "data=4,model=2" as the number of devices along each axis.

    Raises:
        ValueError: it is written otherwise, or names another axis.

    Example:
        >>> from jaxattn.training.devices import parse_mesh
        >>> parse_mesh("data=4,model=2")
        {'data': 4, 'model': 2}
    """
    sizes: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.partition("=")
        if name not in AXES or name in sizes or not number.isdecimal() or int(number) < 1:
            raise ValueError(
                f"--mesh {text}: {part!r} is not understood: write each of {', '.join(AXES)} once at most, with a "
                "number of devices, as in --mesh data=4,model=2"
            )
        sizes[name] = int(number)
    return sizes


def make_mesh(sizes: dict[str, int], batch_size: int, heads: int, context_length: int) -> Mesh:
    """Lay out the devices; without sizes, as many along "data" as divide the batch.

    Raises:
        ValueError: there are too few devices, or what is to be split does not divide.
    """
    devices = jax.devices()
    if not sizes:
        most = len(devices)
        # Each process takes part with all its devices, or JAX would wait for it forever.
        numbers = range(most, 0, -1) if jax.process_count() == 1 else [most]
        sizes = {"data": next((n for n in numbers if batch_size % n == 0), most)}
    shape = [sizes.get(axis, 1) for axis in AXES]
    if np.prod(shape) > len(devices) or (jax.process_count() > 1 and np.prod(shape) < len(devices)):
        wanted = ",".join(f"{axis}={size}" for axis, size in sizes.items())
        raise ValueError(f"--mesh {wanted} takes {np.prod(shape)} devices, but there are {len(devices)}")
    split = {
        "data": ("--batch-size", batch_size),
        "model": ("--heads", heads),
        "seq": ("--context-length", context_length),
    }
    for axis, size in zip(AXES, shape, strict=True):
        option, number = split[axis]
        if number % size:
            raise ValueError(
                f"{option} {number} is split over {axis}={size} devices, which does not divide it: write {option} "
                f"{-(-number // size) * size}, or another --mesh"
            )
    chosen = np.array(devices[: np.prod(shape)]).reshape(shape)
    return Mesh(chosen, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def ring_of(mesh: Mesh) -> Ring | None:
    """Return the ring on which attention runs, where the tokens are split."""
    if mesh.shape["seq"] == 1:
        return None
    return Ring(mesh, "seq", head_axis="model" if mesh.shape["model"] > 1 else None)


def lay_out(mesh: Mesh, state: Any) -> Any:
    """Return the sharding of each array of a training state, by the name of its layer."""

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        names = {getattr(step, "key", None) for step in path}
        spec: tuple[Any, ...] = (None,) * leaf.ndim
        if leaf.ndim and names & set(COLUMNS):
            spec = (*spec[:-1], "model")
        elif leaf.ndim > 1 and names & set(ROWS):
            spec = (*spec[:-2], "model", None)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(sharding, state)


def on_every_device(mesh: Mesh) -> NamedSharding:
    """Return the sharding of what is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def spread_batch(mesh: Mesh, arrays: Any, axis: int = 0) -> Any:
    """Lay host arrays out, their axis of examples over "data"; every process has them whole and keeps its part."""
    sharding = NamedSharding(mesh, PartitionSpec(*(None,) * axis, "data"))
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(array.shape, sharding, lambda index: array[index]), arrays
    )


def gather(mesh: Mesh, tree: Any) -> Any:
    """Return NumPy arrays of what may lie split over the devices, whole in every process."""
    return jax.tree.map(np.asarray, _gathering(mesh)(tree))


@functools.cache
def _gathering(mesh: Mesh) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=on_every_device(mesh))
