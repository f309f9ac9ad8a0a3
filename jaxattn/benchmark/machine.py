"""The machine that the figures come from."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxattn.kernels.native import library


def describe_machine() -> dict[str, Any]:
    """Name the device, its threads, and the versions of what is compared."""
    packages = ("jax", "jaxlib", "flax", "equinox", "tokamax", "torch", "transformers")
    versions = {name: metadata.version(name) for name in packages if is_installed(name)}
    device = jax.devices()[0]
    return {
        "device": device.device_kind if device.platform != "cpu" else f"cpu ({_processor()})",
        "instructions": library.instruction_set(),
        "threads": count_cores(),
        "python": platform.python_version(),
        **versions,
    }


def count_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_installed(package: str) -> bool:
    """Whether a package is installed."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
