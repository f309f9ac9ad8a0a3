"""The peak memory of a candidate beyond its inputs, measured in a process of its own, on Linux."""

import ctypes
import json
import subprocess
import sys
from pathlib import Path

from jaxattn.benchmark.attention import make_candidate
from jaxattn.benchmark.cases import Case

STATUS = Path("/proc/self/status")


def extra_memory(name: str, case: Case) -> float | None:
    """Run a candidate once in a fresh process; return by how many bytes memory grew, or None outside Linux.

    Raises:
        ValueError: the process failed.
    """
    if not STATUS.exists():
        return None
    command = [sys.executable, "-m", "jaxattn.benchmark.memory", name, json.dumps(case._asdict())]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        reason = (finished.stderr.strip() or f"exit status {finished.returncode}").splitlines()[-1]
        raise ValueError(f"the memory of {name} could not be measured: {reason}")
    return float(finished.stdout.split()[-1])


def _main(name: str, case: str) -> None:
    candidate = make_candidate(name, Case(**json.loads(case)))
    # Memory that compiling left behind would hide what running takes.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _kilobytes("VmRSS")
    result = candidate.run()
    print(1024 * (_kilobytes("VmHWM") - before))
    del result


def _kilobytes(field: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(field))


if __name__ == "__main__":
    _main(*sys.argv[1:])
