"""How long things take: candidates in turn, again and again, and the median of each."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Runs of less than this many seconds are preceded by one that is not timed.
SHORT = 1.0


class Candidate(NamedTuple):
    """One way to compute something: `run()` waits for the result, of which `compared` is the part that peers share."""

    name: str
    run: Callable[[], Any]
    compared: Callable[[Any], Any] = lambda result: result
    compile_seconds: float = 0.0


def compiled(name: str, function: Callable, *arguments: Any, compared: Callable[[Any], Any] = lambda r: r) -> Candidate:
    """Make a candidate of a JAX function; it is compiled here, so that the run is not charged for it."""
    start = time.perf_counter()
    executable = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    return Candidate(name, lambda: jax.block_until_ready(executable(*arguments)), compared, seconds)


def check_agreement(candidates: Sequence[Candidate], tolerance: float) -> dict[str, float]:
    """Return each candidate's largest difference from the first, relative to the first's largest number.

    Raises:
        ValueError: a difference exceeds the tolerance; a wrong result is not worth timing.
    """
    differences: dict[str, float] = {}
    expected: list[np.ndarray] = []
    for candidate in candidates:
        came = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(candidate.compared(candidate.run()))]
        expected = expected or came
        # NumPy's maximum keeps what is not a number, Python's may lose it.
        worst = np.max(
            [
                np.abs(a - b).max(initial=0) / np.maximum(np.abs(b).max(initial=0), 1e-30)
                for a, b in zip(came, expected, strict=True)
            ]
        )
        if not worst <= tolerance:
            raise ValueError(f"{candidate.name} differs from {candidates[0].name} by {worst:.1e}, not timed")
        differences[candidate.name] = float(worst)
    return differences


def interleaved_medians(candidates: Sequence[Candidate], seconds: float) -> dict[str, float]:
    """Run the candidates in turn for about so many seconds, at least three rounds; return each one's median seconds.

    A machine's speed drifts; in turn, all see the same drift. Short ones run twice in their turn and the second run
    counts: then caches are their own, and the threads of the one before, which wait for more work awhile, are asleep.
    """
    times: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    end = time.perf_counter() + seconds
    while min(map(len, times.values())) < 3 or time.perf_counter() < end:
        for candidate in candidates:
            took = _seconds(candidate)
            times[candidate.name].append(_seconds(candidate) if took < SHORT else took)
    return {name: statistics.median(each) for name, each in times.items()}


def _seconds(candidate: Candidate) -> float:
    start = time.perf_counter()
    candidate.run()
    return time.perf_counter() - start


def matmul_rate(size: int = 1024) -> float:
    """Measure the machine's float32 matrix products, in GFLOP/s: the floor under everything else here."""
    matrix = jnp.ones((size, size))
    seconds = interleaved_medians([compiled("matmul", jnp.matmul, matrix, matrix)], 1.0)["matmul"]
    return 2 * size**3 / seconds / 1e9


def machine() -> dict[str, Any]:
    """Say what the figures were measured on."""
    packages = ("jax", "jaxlib", "flax", "equinox", "tokamax", "torch")
    versions = {name: metadata.version(name) for name in packages if installed(name)}
    device = jax.devices()[0]
    return {
        "device": device.device_kind if device.platform != "cpu" else f"cpu ({_processor()})",
        "threads": cores(),
        "python": platform.python_version(),
        **versions,
    }


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def installed(package: str) -> bool:
    """Say whether a package is installed."""
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
