"""The same steps as one Jupyter notebook, and checks in its cells."""

import sys
from collections.abc import Callable
from pathlib import Path

from jaxattn.exercises.catalog import Step, step_of, steps
from jaxattn.exercises.learner import check_functions
from jaxattn.extras import require
from jaxattn.files import write_whole

FILE = "exercises.ipynb"


def write_notebook(path: Path, text_of: Callable[[Step], str] = lambda step: step.template) -> None:
    """Write all steps, each with a cell that checks it; no outputs are stored."""
    jupytext = require("jupytext", extra="exercises")
    cells = "".join(f"{text_of(step)}\n# %%\ncheck({step.number})\n\n" for step in steps())
    start = "# %%\nfrom jaxattn.exercises.notebook import check\n\n"
    book = jupytext.reads(start + cells, fmt="py:percent")
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    write_whole(path, jupytext.writes(book, fmt="ipynb").encode("utf-8"))


def check(number: int) -> bool:
    """Check a step's functions as the notebook defines them now; print what holds; return whether all does."""
    step = step_of(str(number))
    caller = sys._getframe(1).f_globals
    findings = check_functions(step, caller)
    for name, wrong in findings.items():
        print(describe(name, wrong))
    return not any(findings.values())


def describe(name: str, wrong: str | None) -> str:
    """Say in one line how a function did."""
    return f"{name} is right" if wrong is None else f"{name} {wrong.rstrip()}"
