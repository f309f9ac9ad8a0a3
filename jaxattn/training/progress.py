"""Shows how far a run is: a progress bar on a terminal, plain lines elsewhere."""

import contextlib
import datetime
import os
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

from jaxattn.extras import require

# Lines in a run, and the number of latest steps from which speed and time left are estimated.
LINES, LATEST = 20, 100


class Progress:
    """A context manager that shows step, loss, tokens/s and time left; call `update` after every step."""

    def __init__(self, first: int, steps: int, tokens_per_step: int, quiet: bool = False) -> None:
        self.steps, self.tokens_per_step, self.quiet = steps, tokens_per_step, quiet
        self.every = max(1, steps // LINES)
        self.seconds: list[float] = []
        self.last: float | None = None
        self.bar: Any = None
        if sys.stdout.isatty() and not quiet:
            rich = require("rich.progress", extra="train")
            columns = ["step {task.completed}/{task.total}", rich.BarColumn(), "{task.fields[state]}"]
            self.bar = rich.Progress(*columns)
            self.task = self.bar.add_task("", total=steps, completed=first, state="compiling")

    def __enter__(self) -> "Progress":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            with _ignore_closed_output():
                self.bar.stop()

    @property
    def tokens_per_second(self) -> float | None:
        """The median speed of the steps after the first, which includes compilation; None before the second step."""
        return self.tokens_per_step / statistics.median(self.seconds) if self.seconds else None

    def pause(self) -> None:
        """Leave the time until `resume` out of the speed."""
        self.last = None

    def resume(self) -> None:
        """Measure the time again."""
        self.last = time.perf_counter()

    def update(self, step: int, loss: float) -> float | None:
        """Show that `step` steps are done; return the tokens per second of this one, if it was measured."""
        now, speed = time.perf_counter(), None
        if self.last is not None:
            self.seconds.append(now - self.last)
            speed = self.tokens_per_step / self.seconds[-1]
        self.last = now
        if self.bar is not None:
            with _ignore_closed_output():
                self.bar.update(self.task, completed=step, state=self._state(step, loss))
        elif not self.quiet and (step % self.every == 0 or step == self.steps):
            say(f"step {step}/{self.steps}  {self._state(step, loss)}")
        return speed

    def _state(self, step: int, loss: float) -> str:
        """Return loss, current speed and time left."""
        if not self.seconds:
            return f"loss {loss:.3f}"
        seconds = statistics.median(self.seconds[-LATEST:])
        left = datetime.timedelta(seconds=round(seconds * (self.steps - step)))
        return f"loss {loss:.3f}  {self.tokens_per_step / seconds:,.0f} tokens/s  {left} left"

    def say(self, text: str) -> None:
        """Print above the progress bar."""
        if self.bar is not None:
            with _ignore_closed_output():
                self.bar.console.print(_printable(text), markup=False, highlight=False)
        elif not self.quiet:
            say(text)


def say(line: str = "", end: str = "\n") -> None:
    """Print a line; if the output was closed (`| head`, a closed terminal), the run continues without output."""
    with _ignore_closed_output():
        print(_printable(line), end=end, flush=True)


@contextlib.contextmanager
def _ignore_closed_output() -> Iterator[None]:
    try:
        yield
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _printable(text: str) -> str:
    """Replace characters that could disturb a terminal, or that standard output cannot encode."""
    encoding = sys.stdout.encoding or "utf-8"
    text = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text.encode(encoding, errors="replace").decode(encoding)
