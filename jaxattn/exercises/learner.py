"""Run a learner's files, in a process of its own, which may be ended: they may loop for ever, or exit."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxattn.exercises.catalog import Step, step_of
from jaxattn.exercises.checking import check
from jaxattn.exercises.errors import explain_error
from jaxattn.exercises.expected import EXERCISES

# For one file, and for the imports before the first.
SECONDS, SECONDS_TO_START = 10, 30

# Of each function: what is wrong with it, or None.
Findings = dict[str, str | None]


def check_files(directory: Path, chosen: Sequence[Step]) -> dict[int, Findings]:
    """Check each step's file in the directory."""
    findings: dict[int, Findings] = {}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report")
        while len(findings) < len(chosen):
            rest = chosen[len(findings) :]
            report.write_text("")
            ending = _run_until_done(directory, rest, report)
            lines = report.read_text().strip().splitlines()
            findings |= {int(number): found for number, found in map(json.loads, lines)}
            if len(findings) < len(chosen):
                step = chosen[len(findings)]
                findings[step.number] = dict.fromkeys(step.functions, ending)
    return findings


def _run_until_done(directory: Path, chosen: Sequence[Step], report: Path) -> str:
    """Return what ended the process, should it not have reported all steps."""
    numbers = [str(step.number) for step in chosen]
    command = [sys.executable, "-m", "jaxattn.exercises.learner", str(directory), str(report), *numbers]
    # Small arrays: a GPU would only take longer to start.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    quiet: Any = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, env=environment) as process:
        done, limit = 0, time.monotonic() + SECONDS_TO_START
        while process.poll() is None:
            time.sleep(0.02)
            lines = report.read_text().count("\n")
            if lines > done:
                done, limit = lines, time.monotonic() + SECONDS
            if time.monotonic() > limit:
                process.kill()
                return f"takes longer than {SECONDS} seconds: does a loop never end?"
    return f"ends the whole process, with status {process.returncode}"


def main(directory: str, report: str, *numbers: str) -> None:
    """Check some steps in this process, and append a line to the report for each; an empty one says that it began."""
    Path(report).write_text("\n", "utf-8")
    for number in numbers:
        found = check_file(Path(directory), step_of(number))
        with open(report, "a", encoding="utf-8") as file:
            file.write(json.dumps([int(number), found]) + "\n")


def check_file(directory: Path, step: Step) -> Findings:
    """Run a step's file and check its functions."""
    path = directory / step.file
    names: dict[str, Any] = {"__name__": path.stem}
    try:
        source = path.read_text("utf-8")
        exec(compile(source, str(path), "exec"), names)
    except FileNotFoundError:
        return dict.fromkeys(step.functions, f"is missing, with the whole file {path}")
    except SyntaxError as error:
        return dict.fromkeys(step.functions, f"is no Python: {error.msg} in line {error.lineno}")
    except (Exception, SystemExit) as error:
        return dict.fromkeys(step.functions, explain_error(error, str(path)))
    return check_functions(step, names, str(path))


def check_functions(step: Step, names: dict[str, Any], file: str = "") -> Findings:
    """Check a step's functions among these names."""
    findings: Findings = {}
    for name in step.functions:
        function = names.get(name)
        findings[name] = check(function, EXERCISES[name], file) if callable(function) else "is not defined"
    return findings


if __name__ == "__main__":
    main(*sys.argv[1:])
