"""Stop at the next step when the user or the system asks for it."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[Callable[[], int]]:
    """Record stop signals instead of ending the process; yield a function that returns the first one, or 0.

    A second signal does what it did before. Ignored signals, as under `nohup`, stay ignored.
    """
    received: list[int] = []

    def record(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) > 1:
            handler = previous[number]
            if not callable(handler):
                raise KeyboardInterrupt
            handler(number, frame)

    numbers = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]  # Windows has no SIGHUP
    previous = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    for number in previous:
        signal.signal(number, record)
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def received_by_any_process(number: int) -> int:
    """Return the stop signal that any of the training processes has received, or 0; all processes must call this."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.array(number))))
