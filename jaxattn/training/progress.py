"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere."""

import datetime
import os
import statistics
import sys
import time
from typing import Any

from jaxattn.extras import require

LINES = 20


class Progress:
    """Shows step, loss, tokens/s and time left; use it as a context, and call `update` when a step's loss is known."""

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
            self.bar.stop()

    @property
    def tokens_per_second(self) -> float | None:
        """The speed by the median of the steps after the first, which compiles; None before there is one."""
        return self.tokens_per_step / statistics.median(self.seconds) if self.seconds else None

    def pause(self) -> None:
        """Leave the time until the next update out of the speed: something else than steps is done."""
        self.last = None

    def resume(self) -> None:
        """Begin to measure again."""
        self.last = time.perf_counter()

    def update(self, step: int, loss: float) -> float | None:
        """Show that `step` steps are done; return the tokens per second of this one."""
        now, speed = time.perf_counter(), None
        if self.last is not None:
            self.seconds.append(now - self.last)
            speed = self.tokens_per_step / self.seconds[-1]
        self.last = now
        if step % self.every == 0 or step == self.steps:
            state = f"loss {loss:.3f}"
            if self.seconds:
                left = statistics.median(self.seconds[-100:]) * (self.steps - step)
                state += f"  {self.tokens_per_second:,.0f} tokens/s  {datetime.timedelta(seconds=round(left))} left"
            if self.bar is not None:
                self.bar.update(self.task, completed=step, state=state)
            elif not self.quiet:
                say(f"step {step}/{self.steps}  {state}")
        return speed

    def say(self, text: str) -> None:
        """Print lines above the bar."""
        if self.bar is not None:
            self.bar.console.print(text, markup=False, highlight=False)
        elif not self.quiet:
            say(text)


def say(line: str = "", end: str = "\n") -> None:
    """Print a line; when nobody reads any more (`| head`), the run goes on in silence."""
    try:
        print(line, end=end, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
