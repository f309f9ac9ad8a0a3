"""Train a small GPT: the same as the command `jaxattn train`."""

# ruff: noqa: E402
import os
import signal
import sys
from typing import Any


def _exit(number: int, frame: Any) -> None:
    """End the process at once: before and after training there is nothing left to save."""
    os.write(2, b"jaxattn train: interrupted; what was saved before is intact\n")
    os._exit(128 + number)


# Before the imports, which take seconds.
for _name in ("SIGINT", "SIGTERM", "SIGHUP"):
    _number = getattr(signal, _name, None)  # Windows has no SIGHUP
    if _number is not None and signal.getsignal(_number) != signal.SIG_IGN:
        signal.signal(_number, _exit)

from jaxattn.training.command import main

if __name__ == "__main__":
    sys.exit(main())
