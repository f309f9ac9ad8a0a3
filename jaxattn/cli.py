"""The console command `jaxattn`: each subcommand is the `main` of a module, imported when it is called."""

import argparse
import difflib
import importlib
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxattn.extras import python
from jaxattn.signals import on_stop_signal

# The name of each command, its module, and what it does.
COMMANDS = {
    "train": ("jaxattn.training.command", "train a small GPT on text, interrupt it and resume it"),
    "generate": ("jaxattn.models.command", "continue a text with a trained model or with GPT-2"),
    "guide": ("jaxattn.guide.command", "make a page that shows every number of the four stages of attention"),
    "exercises": ("jaxattn.exercises.command", "learn attention by writing it, and be told which mistake was made"),
    "benchmark": ("jaxattn.benchmark.command", "compare speed and memory with other implementations"),
}
# What is wrong with the arguments, files, packages or the machine; everything else is an error in this program.
ERRORS = (OSError, ValueError, ImportError, MemoryError, RuntimeError, ArithmeticError)
# JAX tells no more seeds than these apart, unless it runs with 64 bits.
MAX_SEED = 2**32 - 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return its exit status."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        advice = f"did you mean jaxattn {close[0]}?" if close else f"write jaxattn {', '.join(COMMANDS)} or --help"
        print(f"jaxattn: {printable(name)} is not a command: {advice}", file=sys.stderr)
        return 2
    on_stop_signal(lambda number: exit_at_once(name, number))
    return run_command(name, lambda: importlib.import_module(COMMANDS[name][0]).main(rest))


def run_command(name: str, work: Callable[[], int]) -> int:
    """Return the exit status of a command's work; an error is printed as one sentence, and its status is 2.

    An exception may have another one as its `exit_status`.
    """
    try:
        return work()
    except KeyboardInterrupt:
        print(f"jaxattn {name}: interrupted", file=sys.stderr)
        return 130
    except ERRORS as error:
        print(f"jaxattn {name}: {explain(error)}", file=sys.stderr)
        return getattr(error, "exit_status", 2)


def exit_at_once(name: str, number: int) -> NoReturn:
    """End the process on a stop signal, in whatever the main thread is."""
    os.write(2, f"jaxattn {name}: interrupted; what was saved before is intact\n".encode())
    os._exit(128 + number)


def explain(error: BaseException) -> str:
    """Describe an error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return printable(f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in lines[0] or "out of memory" in lines[0].lower():
        return f"there is not enough memory ({printable(lines[0])})"
    if "initialize backend" in lines[0]:
        reason = printable(lines[0].partition(" (set ")[0])
        return f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')} cannot be used ({reason}): unset it, or write cpu"
    # Messages of JAX and XLA go on for many lines, which help developers only.
    return printable(lines[0] if isinstance(error, RuntimeError) else " ".join(lines))


def printable(text: str) -> str:
    """Escape control characters, which could disturb a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def typed(name: str) -> str:
    """Return a command as this one was typed, to be pasted in a shell: `jaxattn train`, or a path to either script.

    Example:
        >>> from jaxattn.cli import typed
        >>> typed("generate")  # from a notebook; after `python scripts/train.py` it is `.venv/bin/python scripts/…`
        'jaxattn generate'
    """
    script = Path(sys.argv[0])
    if script.suffix == ".py" and script.stem in COMMANDS and script.with_stem(name).is_file():
        return f"{python()} {shlex.quote(str(script.with_stem(name)))}"
    on_path = shutil.which("jaxattn")
    if script.stem == "jaxattn" and script.is_file() and not (on_path and script.samefile(on_path)):
        return f"{shlex.quote(str(script))} {name}"
    return f"jaxattn {name}"


def check_number(option: str, number: float, lowest: float, highest: float = 2**31 - 1) -> None:
    """Check the range of an option's number.

    Raises:
        ValueError: the number is outside of it, or NaN.
    """
    if not lowest <= number <= highest:
        raise ValueError(f"{option} is {number}, but must be from {lowest} to {highest}")


def _help() -> str:
    lines = [f"  jaxattn {name:<11}{description}" for name, (_, description) in COMMANDS.items()]
    return "\n".join(["usage: jaxattn COMMAND [options]", "", *lines, "", "jaxattn COMMAND --help lists its options."])


def paragraphs(*texts: str, examples: Sequence[tuple[str, str]] = ()) -> str:
    """Return help text that is formatted already: paragraphs as wide as the terminal, then commands to type.

    Example:
        >>> from jaxattn.cli import paragraphs
        >>> print(paragraphs("Train.", examples=[("jaxattn train", "on Python's standard library")]))
        Train.
        <BLANKLINE>
        examples:
          jaxattn train
              on Python's standard library
    """
    width = max(30, shutil.get_terminal_size().columns - 2)
    parts = [textwrap.fill(text, width, break_on_hyphens=False) for text in texts]
    if examples:
        margin = " " * 6
        lines = (
            f"  {command}\n{textwrap.fill(text, width, initial_indent=margin, subsequent_indent=margin)}"
            for command, text in examples
        )
        parts.append("\n".join(["examples:", *lines]))
    return "\n\n".join(parts)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence, with a suggestion for a misspelled option."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        if unknown:
            usage, self.usage = self.usage, None  # the usage of its own lists all options
            options = re.findall(r"--[\w-]+", self.format_usage())
            self.usage = usage
            close = difflib.get_close_matches(unknown[1], options, n=1)
            message = f"{unknown[1]} is not an option: " + (
                f"did you mean {close[0]}?" if close else "--help lists the options"
            )
        short = message if len(message) <= 300 else f"{message[:300]}…"
        self.exit(2, f"{self.prog}: {printable(short)}\n")
