"""The parser that the commands share."""

import argparse
import difflib
import re
from typing import Any, NoReturn


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
