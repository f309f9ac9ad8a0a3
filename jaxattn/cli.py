"""The console command `jaxattn`: each subcommand is the `main` of a module, imported when it is called."""

import argparse
import difflib
import importlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

# The name of each command, its module, and what it does.
COMMANDS = {
    "train": ("jaxattn.training.command", "train a small GPT on text, interrupt it and resume it"),
    "generate": ("jaxattn.models.command", "continue a text with a trained model or with GPT-2"),
    "guide": ("jaxattn.guide.command", "make a page that shows every number of the four stages of attention"),
    "benchmark": ("jaxattn.benchmark.command", "compare speed and memory with other implementations"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return its exit status."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        advice = f"did you mean jaxattn {close[0]}?" if close else f"write jaxattn {', '.join(COMMANDS)} or --help"
        print(f"jaxattn: {name} is not a command: {advice}", file=sys.stderr)
        return 2
    if name == "train":
        exit_on_stop_signals()
    status: int = importlib.import_module(COMMANDS[name][0]).main(rest)
    return status


def exit_on_stop_signals() -> None:
    """End the process at once on a stop signal: before and after training there is nothing left to save."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _exit)


def _exit(number: int, frame: Any) -> None:
    os.write(2, b"jaxattn train: interrupted; what was saved before is intact\n")
    os._exit(128 + number)


def _help() -> str:
    lines = [f"  jaxattn {name:<11}{description}" for name, (_, description) in COMMANDS.items()]
    return "\n".join(["usage: jaxattn COMMAND [options]", "", *lines, "", "jaxattn COMMAND --help lists its options."])


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence, with a suggestion for a misspelled option."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        if unknown:
            options = re.findall(r"--[\w-]+", self.format_usage())
            close = difflib.get_close_matches(unknown[1], options, n=1)
            message = f"{unknown[1]} is not an option: " + (
                f"did you mean {close[0]}?" if close else "--help lists the options"
            )
        self.exit(2, f"{self.prog}: {message}\n")
