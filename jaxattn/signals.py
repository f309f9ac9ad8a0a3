"""React to stop signals at once, even while the main thread waits for JAX to compile or compute."""

import os
import signal
import threading
from collections.abc import Callable

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


def on_stop_signal(react: Callable[[int], None]) -> Callable[[], None]:
    """Call `react(number)`, in a thread, for each stop signal, instead of ending the process; return how to undo that.

    Python's own handlers run in the main thread, which may be inside XLA for many seconds. Ignored signals, as under
    `nohup`, stay ignored. Outside of the main thread, which alone may catch signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    numbers = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]  # Windows has no SIGHUP
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    # Python writes the number of every signal to this pipe, in whatever the main thread is.
    outer = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    previous = {number: signal.signal(number, lambda *_: None) for number in numbers}
    thread = threading.Thread(target=_watch, args=(receiver, numbers, react), daemon=True)
    thread.start()

    def undo() -> None:
        signal.set_wakeup_fd(outer)
        for number, handler in previous.items():
            if handler is not None:  # None: not set by Python, which cannot set it again
                signal.signal(number, handler)
        os.close(sender)
        thread.join()

    return undo


def _watch(receiver: int, numbers: list[int], react: Callable[[int], None]) -> None:
    while received := os.read(receiver, 1):
        if received[0] in numbers:
            react(received[0])
    os.close(receiver)
