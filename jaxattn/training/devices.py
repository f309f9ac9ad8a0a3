"""Which devices take part in training, and the mesh that they form."""

import math
import os
import re

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from jaxattn.cli import check_number

AXES = ("data", "model", "seq")
# Environment variables by which SLURM and Open MPI tell a process how many were started.
LAUNCHERS = {"SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"}
# After so many seconds without a sign of life, a process counts as lost; so many after it said that it leaves, the
# others end.
SILENCE, FAREWELL = 60, 10


def use_all_cores() -> None:
    """Make each CPU core a device of its own; call this before JAX creates its first array.

    A core that computes its own sequences does not wait for the others until the end of the step.
    """
    already_set = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices < 0 and not already_set:  # type: ignore[attr-defined]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        jax.config.update("jax_num_cpu_devices", cores)


def is_one_of_several(coordinator: str | None) -> bool:
    """Return whether the arguments or a launcher's environment say that several processes train together."""
    return coordinator is not None or any(os.environ.get(name, "1") not in ("", "1") for name in LAUNCHERS)


def join_processes(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Connect to the other training processes, if the arguments or a launcher's environment say that there are any.

    Raises:
        ValueError: only some of the three arguments are given.
        ConnectionError: the others cannot be reached.
    """
    given = (coordinator, processes, process)
    if any(value is not None for value in given):
        if coordinator is None or processes is None or process is None:
            raise ValueError("--coordinator HOST:PORT, --processes N and --process I belong together: give all three")
        check_number("--processes", processes, 1)
        check_number("--process", process, 0, processes - 1)
        host, _, port = coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port[:9]) < 2**16):
            raise ValueError(f"--coordinator is {coordinator}, but must be HOST:PORT, as in localhost:1234")
    if is_one_of_several(coordinator):
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                heartbeat_timeout_seconds=SILENCE,
                shutdown_timeout_seconds=FAREWELL,
            )
        except RuntimeError as error:  # JAX and XLA raise nothing narrower
            place = coordinator or "of the first one"
            reason = str(error).partition("\n")[0]
            raise ConnectionError(f"the training processes could not connect at {place} ({reason})") from None


def leave_together() -> None:
    """Disconnect from the other training processes, once all of them have come here."""
    if jax.distributed.is_initialized():
        multihost_utils.sync_global_devices("leave together")
        jax.distributed.shutdown()


def parse_mesh(text: str) -> dict[str, int]:
    """Parse "data=4,model=2" into the number of devices along each axis.

    Raises:
        ValueError: the text has another form, or names another axis.

    Example:
        >>> from jaxattn.training.devices import parse_mesh
        >>> parse_mesh("data=4,model=2")
        {'data': 4, 'model': 2}
    """
    sizes: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.partition("=")
        if name not in AXES or name in sizes or not re.fullmatch("[1-9][0-9]{0,8}", number):
            raise ValueError(
                f"--mesh {text}: {part!r} is not understood: write each of {', '.join(AXES)} at most once, with a "
                "number of devices, as in --mesh data=4,model=2"
            )
        sizes[name] = int(number)
    return sizes


def choose_data_size(devices: int, batch_size: int) -> int:
    """Return over how many devices to split a batch: as few as are as fast as all of them.

    A step takes as long as the device with the most sequences: of 16, 6 devices have at most 3, and so would 7.
    """
    return -(-batch_size // -(-batch_size // devices))


def make_mesh(sizes: dict[str, int], batch_size: int, heads: int, context_length: int) -> Mesh:
    """Arrange the devices in a mesh; without sizes, along "data" alone.

    Raises:
        ValueError: there are too few devices, or a size does not divide what it splits, or is larger than the batch.
    """
    devices = jax.devices()
    if not sizes:
        # Every process must take part with all its devices, or JAX would wait for it forever.
        sizes = {"data": choose_data_size(len(devices), batch_size) if jax.process_count() == 1 else len(devices)}
    shape = [sizes.get(axis, 1) for axis in AXES]
    if math.prod(shape) > len(devices) or (jax.process_count() > 1 and math.prod(shape) < len(devices)):
        requested = ",".join(f"{axis}={size}" for axis, size in sizes.items())
        raise ValueError(f"--mesh {requested} needs {math.prod(shape)} devices, but there are {len(devices)}")
    if shape[0] > batch_size:
        raise ValueError(
            f"--batch-size {batch_size} is split over data={shape[0]} devices, and some would have no sequence: write "
            f"--batch-size {shape[0]}, or another --mesh"
        )
    split = {"model": ("--heads", heads), "seq": ("--context-length", context_length)}
    for axis, (option, number) in split.items():
        size = sizes.get(axis, 1)
        if number % size:
            raise ValueError(
                f"{option} {number} is split over {axis}={size} devices, and {size} does not divide it: write {option} "
                f"{-(-number // size) * size}, or another --mesh"
            )
    chosen = np.array(devices[: math.prod(shape)]).reshape(shape)
    return Mesh(chosen, AXES, axis_types=(AxisType.Auto,) * len(AXES))
