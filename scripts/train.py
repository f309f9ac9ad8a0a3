"""Train a small GPT on text, and see its loss on held-out text go down.

Without options it learns from the source of Python's standard library for about two minutes on a laptop's CPU; all
cores, GPUs or TPUs that JAX finds are used. With --out DIR the run can be left alone: its state is saved as it goes,
Ctrl-C or SIGTERM saves and ends it, and --resume goes on where it was, whatever stopped it, to the last bit.

Exit status: 0 the held-out loss fell, 1 it did not, 2 something was wrong with the options, files or disk, 3 the loss
became NaN or infinite, 129, 130 or 143 stopped by SIGHUP, Ctrl-C or SIGTERM (what was learned by then is saved).
"""

# ruff: noqa: E402
import os
import signal
from typing import Any


def _leave(number: int, _: Any) -> None:
    """End at once: before training begins and after it has ended, nothing can be lost."""
    os.write(2, b"train.py: interrupted; what was saved before is intact\n")
    os._exit(128 + number)


# Before the imports, which take seconds.
for _name in ("SIGINT", "SIGTERM", "SIGHUP"):
    _number = getattr(signal, _name, None)  # Windows has no SIGHUP
    if _number is not None and signal.getsignal(_number) != signal.SIG_IGN:
        signal.signal(_number, _leave)

import argparse
import sys
import threading

from jax.errors import JaxRuntimeError

from jaxattn.training.config import add_options, from_options
from jaxattn.training.devices import join_processes, use_all_cores
from jaxattn.training.directory import saved_config
from jaxattn.training.run import DivergedError, Run


def main() -> int:
    """Run; return the exit status."""
    options = parser().parse_args()
    _hush()
    try:
        resume = options.resume
        if resume is not None and not hasattr(options, "out"):
            raise ValueError("--resume goes on with a run that was saved: name it with --out DIR")
        config = from_options(options, None if resume is None else saved_config(options.out))
        use_all_cores()
        join_processes(options.coordinator, options.processes, options.process)
        outcome = Run(config, resume).train()
    except (OSError, ValueError, ImportError, DivergedError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 3 if isinstance(error, DivergedError) else 2
    except (MemoryError, JaxRuntimeError) as error:
        print(f"train.py: {_first_line(error)}", file=sys.stderr)
        return 2
    return 128 + outcome.signal if outcome.signal else 0 if outcome.learned else 1


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    new = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(new)
    new.add_argument(
        "--resume", type=int, nargs="?", const=-1, metavar="STEP",
        help="go on with the run in --out DIR, from its last checkpoint or that of STEP; options need not be repeated",
    )  # fmt: skip
    together = new.add_argument_group("several processes", "as the launchers of SLURM and Open MPI tell, or:")
    together.add_argument("--coordinator", metavar="HOST:PORT", help="where the first process can be reached")
    together.add_argument("--processes", type=int, metavar="N", help="how many there are")
    together.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")
    return new


def _first_line(error: BaseException) -> str:
    """Say what JAX stumbled over; of what it lists where memory is short, nothing helps."""
    line = str(error).partition("\n")[0]
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in line:
        return f"there is too little memory ({line}): write --accumulate 2 or more, --remat, or a smaller --batch-size"
    return f"JAX gave up ({line})"


def _hush() -> None:
    """Let `main` alone say what failed: what fails in a thread that saves is raised there too."""
    main_thread, otherwise = threading.main_thread(), sys.excepthook
    threading.excepthook = sys.unraisablehook = lambda _: None
    sys.excepthook = lambda *error: otherwise(*error) if threading.current_thread() is main_thread else None


if __name__ == "__main__":
    sys.exit(main())
