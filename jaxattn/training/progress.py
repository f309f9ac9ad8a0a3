"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere."""

import datetime
import math
import os
import sys
import time
from typing import Any

import numpy as np

from jaxattn.extras import require

LINES = 20


class Progress:
    """Shows step, loss, tokens/s and time left; use it as a context, and call `update` after every step.

    `tokens_per_second` is the speed since the first step, which compiles; NaN until a second one is shown.
    """

    def __init__(self, steps: int, tokens_per_step: int) -> None:
        self.steps, self.tokens_per_step = steps, tokens_per_step
        self.every = max(1, steps // LINES)
        self.tokens_per_second = math.nan
        self.bar: Any = None
        if sys.stdout.isatty():
            rich = require("rich.progress", extra="train")
            columns = ["step {task.completed}/{task.total}", rich.BarColumn(), "{task.fields[state]}"]
            self.bar = rich.Progress(*columns)
            self.task = self.bar.add_task("", total=steps, state="compiling")

    def __enter__(self) -> "Progress":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, step: int, loss: Any) -> None:
        """Show that `step` steps are done; the loss is waited for only where it is shown."""
        if step == 1:
            float(loss)
            self.started = time.perf_counter()
        elif step % self.every == 0 or step == self.steps:
            shown = float(loss)
            seconds_per_step = (time.perf_counter() - self.started) / (step - 1)
            self.tokens_per_second = self.tokens_per_step / seconds_per_step
            left = datetime.timedelta(seconds=round(seconds_per_step * (self.steps - step)))
            state = f"loss {shown:.3f}  {self.tokens_per_second:,.0f} tokens/s  {left} left"
            if self.bar is None:
                say(f"step {step}/{self.steps}  {state}")
            else:
                self.bar.update(self.task, completed=step, state=state)


def say(line: str = "", end: str = "\n") -> None:
    """Print a line; when nobody reads any more (`| head`), the run goes on in silence."""
    try:
        print(line, end=end, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def printable(tokens: Any) -> str:
    """Show bytes as text: UTF-8 where it is, and no control characters that could upset a terminal."""
    text = np.asarray(tokens, np.uint8).tobytes().decode("utf-8", errors="replace")
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
