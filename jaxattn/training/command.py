"""The command `jaxattn train`."""

import argparse
import dataclasses
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.errors import JaxRuntimeError

from jaxattn.cli import Parser, paragraphs, run_command
from jaxattn.training import member
from jaxattn.training.ablation import PARTS, ablate, check_ablation
from jaxattn.training.config import OUTPUT, TrainConfig, flag, preset
from jaxattn.training.devices import is_one_of_several, join_processes, leave_together, use_all_cores
from jaxattn.training.directory import saved_config
from jaxattn.training.progress import say
from jaxattn.training.recovery import LAST, is_complete
from jaxattn.training.report import complete
from jaxattn.training.run import Run

DESCRIPTION = """\
Train a small GPT on text, and watch its loss on held-out text fall. Without options it trains on the source of
Python's standard library, one to two minutes on two cores of a CPU, on all cores, GPUs or TPUs that JAX finds.
With --out DIR the run is saved as it goes: Ctrl-C or SIGTERM saves and ends it, and --resume continues it from
where it was, whatever stopped it, with exactly the same losses."""

EXAMPLES = (
    ("jaxattn train --out runs/first", "train with the defaults, and save the model, its curve and its samples"),
    ("jaxattn train --text book.txt --out runs/book", "learn from a text of your own"),
    ("jaxattn train --out runs/book --resume", "continue a run that was stopped"),
    ("jaxattn train --task copy", "learn to copy in seconds, and find the head that does it"),
    ("jaxattn train --ablate causal heads --out runs/parts", "see what a model is without its mask, or with one head"),
)

EXIT_STATUS = """\
Exit status: 0 the held-out loss fell, or the run to resume was complete, 1 it did not, 2 something was wrong with the
options, files or disk, 3 the loss became NaN or infinite, 129, 130 or 143 stopped by SIGHUP, Ctrl-C or SIGTERM (what
was learned by then is saved), 4 another training process has ended."""

FAILED = (2, 3)


def main(argv: Sequence[str] | None = None) -> int:
    """Train; return the exit status."""
    _silence_threads()
    status = run_command("train", lambda: train(sys.argv[1:] if argv is None else argv))
    if member.is_member() and status in FAILED:
        member.leave(status)
    return status


def train(argv: Sequence[str]) -> int:
    """Start or resume a run; return the exit status."""
    options, config = parse(argv)
    if options.ablate:
        check_ablation(config, options.ablate, options.resume is not None)
    if options.resume is not None and is_complete(config, options.resume):
        say(complete(config.steps, Path(str(config.out))))
        return 0
    if is_one_of_several(options.coordinator):
        if not member.is_member():
            return member.watch_member(argv, None if config.out is None else Path(config.out))
        member.become_member()
    use_all_cores()
    join_processes(options.coordinator, options.processes, options.process)
    try:
        if options.ablate:
            return ablate(config, options.ablate)
        return _run(config, options.resume)
    except (MemoryError, JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            advice = "write --accumulate 2 or more, --remat, or a smaller --batch-size"
            raise MemoryError(f"{str(error).partition(chr(10))[0]}; {advice}") from None
        raise


def _run(config: TrainConfig, resume: int | None) -> int:
    try:
        status = Run(config, resume).train().exit_status
        leave_together()
        return status
    except Exception as error:
        if member.is_member() and member.has_lost_others(error):
            member.leave(member.LOST)
        raise


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, TrainConfig]:
    """Return the options that are not fields of the configuration, and the configuration.

    Fields that are not given are those of the saved run with --resume, else those that suit the task and the recipe.

    Raises:
        ValueError: an option is out of range.
    """
    first = Parser(prog="jaxattn train", add_help=False)
    first.add_argument("--task", default="text")
    first.add_argument("--recipe")
    first.add_argument("--out")
    _add_resume(first)
    chosen, _ = first.parse_known_args(argv)
    if chosen.resume is not None and chosen.out is None:
        raise ValueError("--resume continues a saved run: name its directory with --out DIR")
    default = preset(chosen.task, chosen.recipe) if chosen.resume is None else saved_config(chosen.out)

    parser = Parser(
        prog="jaxattn train",
        usage="jaxattn train [options]",
        description=paragraphs(DESCRIPTION, examples=EXAMPLES),
        epilog=paragraphs(EXIT_STATUS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups = add_options(parser, default)
    _add_resume(groups[OUTPUT])
    compare = parser.add_argument_group("what each part is for")
    compare.add_argument(
        "--ablate",
        nargs="+",
        choices=PARTS,
        metavar="PART",
        help=f"train the same model once whole and once without each PART, of {', '.join(PARTS)}; draw the held-out "
        "losses in one figure in --out DIR, and say what they show",
    )
    processes = parser.add_argument_group("several processes", "found by themselves under SLURM and Open MPI, else:")
    processes.add_argument("--coordinator", metavar="HOST:PORT", help="the address of the first process")
    processes.add_argument("--processes", type=int, metavar="N", help="the number of processes")
    processes.add_argument("--process", type=int, metavar="I", help="the number of this process, from 0")
    options = parser.parse_args(argv)
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    given = {name: value for name, value in vars(options).items() if name in names}
    if "text" in given:
        given["text"] = tuple(given["text"])
    return options, dataclasses.replace(default, **given)


def add_options(parser: argparse.ArgumentParser, default: TrainConfig) -> dict[str, Any]:
    """Add an option for each field of the configuration, and return the groups of options by title.

    Options that are not given are absent from the result of the parser.
    """
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(default):
        title, value = field.metadata["group"], getattr(default, field.name)
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": field.metadata["help"]}
        if isinstance(value, bool):
            settings["action"] = argparse.BooleanOptionalAction
        else:
            is_text = isinstance(field.default, str | tuple | None)
            shown = ", ".join(value) if isinstance(value, tuple) else value
            settings["help"] += f" (default: {shown or field.metadata['empty'] or shown})"
            settings |= {"metavar": field.metadata["metavar"], "type": str if is_text else type(field.default)}
            if isinstance(value, tuple):
                settings["nargs"] = "+"
        groups[title].add_argument(flag(field.name), **settings)
    return groups


def _add_resume(parser: Any) -> None:
    parser.add_argument(
        "--resume",
        type=_step,
        nargs="?",
        const=LAST,
        metavar="STEP",
        help="continue the run in --out DIR from its last checkpoint, or from that of STEP, with its saved options",
    )


def _step(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:12]) < 2**31):
        raise argparse.ArgumentTypeError(
            f"{text} is no step: write the step of a checkpoint, 1 or more, or --resume alone for the last one"
        )
    return int(text)


def _silence_threads() -> None:
    """Let only `main` print errors: errors in the threads that save are raised in the main thread as well."""
    main_thread, print_error = threading.main_thread(), sys.excepthook
    threading.excepthook = lambda _: None
    sys.unraisablehook = lambda _: None
    sys.excepthook = lambda *error: print_error(*error) if threading.current_thread() is main_thread else None
