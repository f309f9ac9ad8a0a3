"""Stop at the next step when the user or the system asks for it."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxattn.cli import exit_at_once
from jaxattn.signals import on_stop_signal


@contextlib.contextmanager
def catch_stop_signals(directory: Path | None, saving: str = "saves the run in") -> Iterator[Callable[[], int]]:
    """Record stop signals and say what follows; yield a function that returns the first one, or 0.

    The run that is saved in a directory is saved whatever comes. Without a directory a second signal ends the process.
    """
    received: list[int] = []

    def react(number: int) -> None:
        received.append(number)
        if directory is None and len(received) > 1:
            exit_at_once("train", number)
        # The terminal may have been closed.
        with contextlib.suppress(OSError, ValueError):
            print(f"jaxattn train: {_announce(directory, saving, len(received))}", file=sys.stderr, flush=True)

    undo = on_stop_signal(react)
    try:
        yield lambda: received[0] if received else 0
    finally:
        undo()


def _announce(directory: Path | None, saving: str, count: int) -> str:
    if directory is None:
        return "stops after this step, and saves nothing, as there is no --out; a second Ctrl-C ends it at once"
    if count == 1:
        return f"stops after this step and {saving} {directory}; a second Ctrl-C changes nothing"
    return (
        f"still stops after this step and {saving} {directory}; kill -9 {os.getpid()} would end it at once and "
        "lose the steps since the last checkpoint"
    )


def received_by_any_process(number: int) -> int:
    """Return the stop signal that any of the training processes has received, or 0; all processes must call this."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.array(number))))
