"""How much memory a candidate takes at its peak, beyond its inputs: measured in a process of its own, on Linux."""

import ctypes
import subprocess
import sys
from pathlib import Path

from jaxattn.benchmark.peers import candidate

STATUS = Path("/proc/self/status")


def extra_memory(name: str, kind: str, shape: tuple[int, int, int, int], backward: bool) -> float | None:
    """Run a candidate once in a fresh process; return by how many bytes memory grew, or None where nothing tells."""
    if not STATUS.exists():
        return None
    command = [sys.executable, "-m", "jaxattn.benchmark.memory", name, kind, *map(str, shape), str(int(backward))]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise ValueError(f"{name} could not be measured: {finished.stderr.strip().splitlines()[-1]}")
    return float(finished.stdout.split()[-1])


def _kilobytes(field: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(field))


def _main(name: str, kind: str, *numbers: str) -> None:
    B, T, H, D, backward = map(int, numbers)
    ready = candidate(name, kind, (B, T, H, D), bool(backward))
    # What compiling has left behind would hide what running takes.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _kilobytes("VmRSS")
    result = ready.run()
    print(1024 * (_kilobytes("VmHWM") - before))
    del result


if __name__ == "__main__":
    _main(*sys.argv[1:])
