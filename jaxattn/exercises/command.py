"""Learn attention by writing it: thirteen small steps, and a check that names the mistake.

`start` writes the steps, as files and as a notebook; `check` says of each what holds; `hint` gives a hint, and a
further one each time; `solution` shows one; `quiz` asks questions. Nothing is sent anywhere. Exit status: 0 all chosen
steps are right, 1 something is still to be done, 2 something was wrong with the command.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jaxattn.cli import Parser, run_command, typed
from jaxattn.exercises.catalog import Step, step_of, steps
from jaxattn.exercises.checking import TO_BE_FILLED_IN
from jaxattn.exercises.learner import Findings, check_files
from jaxattn.exercises.notebook import FILE as NOTEBOOK
from jaxattn.exercises.notebook import describe, write_notebook
from jaxattn.exercises.progress import Progress
from jaxattn.exercises.quiz import ask
from jaxattn.files import write_whole
from jaxattn.training.progress import say


def main(argv: Sequence[str] | None = None) -> int:
    """Run; return the exit status."""
    return run_command("exercises", lambda: run(parser().parse_args(argv)))


def run(options: argparse.Namespace) -> int:
    """Do what the subcommand says."""
    if options.action == "start":
        return start(options.directory)
    if options.action == "check":
        return check(options.directory, options.step)
    if options.action == "hint":
        return hint(options.directory, options.step)
    if options.action == "solution":
        say(step_of(options.step).solution)
        return 0
    return ask(options.questions, options.seed)


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    new = Parser(prog="jaxattn exercises", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = new.add_subparsers(dest="action", required=True, metavar="ACTION")
    helps = {
        "start": "write the steps into a folder",
        "check": "say of each step what holds",
        "hint": "give a hint, and a further one each time",
        "solution": "show a solution",
        "quiz": "answer questions on the chapter",
    }
    for name, text in helps.items():
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name in ("start", "check", "hint"):
            action.add_argument("directory", type=Path, metavar="DIR", help="the folder of the exercises")
        if name == "check":
            action.add_argument("step", nargs="?", metavar="STEP", help="a number or a file (default: all)")
        if name in ("hint", "solution"):
            action.add_argument("step", metavar="STEP", help="a number or a file")
        if name == "quiz":
            action.add_argument("--questions", type=int, default=10, metavar="N", help="how many (default: 10)")
            action.add_argument("--seed", type=int, default=None, metavar="N", help="the choice (default: at random)")
    return new


def start(directory: Path) -> int:
    """Write what is missing; files that are there are a learner's work, and stay."""
    directory.mkdir(parents=True, exist_ok=True)
    missing = [step for step in steps() if not (directory / step.file).exists()]
    for step in missing:
        write_whole(directory / step.file, step.template.encode("utf-8"))
    say(f"{directory}: {len(missing)} steps written, {len(steps()) - len(missing)} were there and stay as they are")
    if not (directory / NOTEBOOK).exists():
        try:
            write_notebook(directory / NOTEBOOK)
            say(f"{directory / NOTEBOOK}: the same steps as a notebook")
        except ImportError as error:
            say(f"no notebook: {error}")
    say(f"Open {directory / steps()[0].file}, fill in the function, then write")
    say(f"  {typed('exercises')} check {directory}")
    return 0


def check(directory: Path, name: str | None) -> int:
    """Print what holds; of steps that are still to be filled in, only the first one's functions."""
    chosen = steps() if name is None else (step_of(name),)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is no folder: write {typed('exercises')} start {directory}")
    progress, findings = Progress.read(directory), check_files(directory, chosen)
    rest = [step for step in chosen if any(findings[step.number].values())]
    untouched = [step for step in rest if set(findings[step.number].values()) == {TO_BE_FILLED_IN}]
    for step in chosen:
        if step not in untouched[1:]:
            _say_findings(step, findings[step.number])
    if untouched[1:]:
        numbers = ", ".join(str(step.number) for step in untouched[1:])
        say(f"✗ Still to be filled in: step{'s' * (len(untouched) > 2)} {numbers}")
    done = {*progress.done, *(step.number for step in chosen)} - {step.number for step in rest}
    progress.done = sorted(done)
    progress.write(directory)
    say(f"{len(done)} of {len(steps())} steps are done")
    to_do = [step for step in steps() if step.number not in done]
    if rest:
        say(f"For a hint: {typed('exercises')} hint {directory} {rest[0].number}")
    elif to_do:
        say(f"Next: {directory / to_do[0].file}")
    return 1 if rest else 0


def _say_findings(step: Step, findings: Findings) -> None:
    wrong = any(findings.values())
    say(f"{'✗' if wrong else '✓'} {step.title}")
    for function, finding in findings.items() if wrong else ():
        say(f"    {describe(function, finding)}")


def hint(directory: Path, name: str) -> int:
    """Print one hint more than the last time."""
    step, progress = step_of(name), Progress.read(directory)
    shown = min(progress.hints.get(str(step.number), 0) + 1, len(step.hints))
    for number, text in enumerate(step.hints[:shown], 1):
        say(f"{number}. {text}")
    progress.hints[str(step.number)] = shown
    progress.write(directory)
    more = f"{typed('exercises')} {f'hint {directory}' if shown < len(step.hints) else 'solution'} {step.number}"
    say(f"Still stuck? {more}")
    return 0
