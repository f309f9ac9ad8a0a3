"""Where a program runs: what decides between kernels and between block sizes.

One program can be lowered for several platforms, so kernels that differ are traced once for each (`transforms.py`).
JAX calls NVIDIA's GPUs "cuda" and AMD's "rocm" there, and both "gpu" elsewhere.
"""

from typing import Any

import jax
from jax import Array


def platform_of(array: Array) -> str:
    """Return the platform on which an array lies: "cpu", "cuda", "rocm", "tpu"; of a traced one, the default."""
    default: Any = jax.config.jax_default_device or jax.devices()[0]  # type: ignore[attr-defined]
    device = default if isinstance(array, jax.core.Tracer) else next(iter(array.devices()))
    if isinstance(device, str):  # jax_default_device may name a platform
        device = jax.devices(device)[0]
    if device.platform != "gpu":
        return device.platform
    return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"


def cuda_capability() -> tuple[int, ...] | None:
    """Return the lowest compute capability of this process's NVIDIA GPUs, or None if it has none."""
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:  # no such platform
        return None
    return min(tuple(int(part) for part in device.compute_capability.split(".")) for device in devices)


def on_one_device(platform: str) -> bool:
    """Return whether no compiler shards this program: there is one device, or `shard_map` has all mesh axes."""
    mesh = jax.sharding.get_abstract_mesh()
    return device_count(platform) == 1 or (bool(mesh.axis_names) and set(mesh.manual_axes) == set(mesh.axis_names))


def device_count(platform: str) -> int:
    """Return how many devices may share a program; as many as by default where the platform is not present here."""
    return jax.device_count("cpu" if platform == "cpu" else None)
