"""How a run continues after it was stopped or failed: restoring a checkpoint, and messages that say what is left."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from jaxattn.cli import explain, typed
from jaxattn.tasks import Data
from jaxattn.training.batches import batch_positions
from jaxattn.training.checkpoints import Checkpoints
from jaxattn.training.config import TrainConfig
from jaxattn.training.directory import saved_config, saved_steps
from jaxattn.training.saving import saved_step
from jaxattn.training.step import TrainState

# In place of a step: resume from the last checkpoint.
LAST = -1


class DivergedError(ArithmeticError):
    """A loss or gradient is NaN or infinite."""

    exit_status = 3


def resume_command(directory: Path, step: int | None = None) -> str:
    """Return the command that resumes the run in a directory."""
    number = "" if step is None else f" {step}"
    return f"{typed('train')} --out {shlex.quote(str(directory))} --resume{number}"


def step_to_resume(directory: Path, resume: int) -> int | None:
    """Return the step of the checkpoint that `--resume` asks for, None for LAST if there is no checkpoint yet.

    Raises:
        ValueError: there is no checkpoint of that step.
    """
    steps = saved_steps(directory)
    if resume == LAST:
        return steps[-1] if steps else None
    if resume not in steps:
        existing = ", ".join(map(str, steps)) or "none"
        raise ValueError(f"--resume {resume}: there is no complete checkpoint of that step, only {existing}")
    return resume


def check_steps(config: TrainConfig, resume: int) -> None:
    """Check that the run has not done more steps than it should have at its end.

    Raises:
        ValueError: it has, or there is no checkpoint of the step to resume from.
    """
    directory = Path(str(config.out))
    step = step_to_resume(directory, resume)
    if step is not None and step > config.steps:
        raise ValueError(
            f"--steps is {config.steps}, but the run in {directory} has done {step} already: write --steps {2 * step}, "
            f"or resume from one of its checkpoints, {', '.join(map(str, saved_steps(directory)))}"
        )


def is_complete(config: TrainConfig, resume: int) -> bool:
    """Return whether the run has done all its steps and saved its model after them."""
    directory = Path(str(config.out))
    if saved_config(str(directory)).differences(config):
        return False
    is_last = step_to_resume(directory, resume) == config.steps == max(saved_steps(directory), default=0)
    return is_last and saved_step(directory) == config.steps


def restore(checkpoints: Checkpoints, resume: int, state: TrainState) -> TrainState | None:
    """Return the state after a step, or LAST, and delete later checkpoints; None if there is no checkpoint yet.

    Raises:
        ValueError: there is no checkpoint of that step, or it is damaged.
    """
    directory = checkpoints.directory.parent
    step = step_to_resume(directory, resume)
    if step is None:
        return None
    try:
        restored = checkpoints.restore(step, state)
    except ValueError as error:
        earlier = checkpoints.last_intact_before(step, state)
        advice = (
            "there is no intact checkpoint before it: start again with another --out"
            if earlier is None
            else f"the checkpoint of step {earlier} is intact: {resume_command(directory, earlier)} resumes from it"
        )
        raise ValueError(f"{error}; {advice}") from None
    checkpoints.delete_after(step)
    return restored


def diverged(
    config: TrainConfig, data: Data, step: int, reason: str, directory: Path | None, checkpoints: Sequence[int]
) -> DivergedError:
    """Return the error for a loss or gradient that is NaN or infinite at a step."""
    length = config.context_length + 1
    positions = batch_positions(data.corpus.train, config.batch_size, length, (config.seed, step))
    saved = "no checkpoint was saved"
    if directory is not None and checkpoints:
        saved = f"{resume_command(directory, checkpoints[-1])} resumes from the last good checkpoint"
    return DivergedError(
        f"at step {step} {reason}, on the sequences that start at {data.unit} {', '.join(map(str, positions))} of the "
        f"training text; {saved}; the same steps would give the same numbers, so start again with a lower "
        "--learning-rate and another --out"
    )


def write_error(error: OSError, directory: Path | None, checkpoints: Sequence[int]) -> OSError:
    """Return an error that also says which checkpoint is intact."""
    reason = explain(error)
    if str(directory) not in reason:
        reason = f"the run could not be written to {directory} ({reason})"
    if directory is None or not checkpoints:
        return OSError(f"{reason}; no checkpoint was saved before")
    return OSError(
        f"{reason}; the checkpoint of step {checkpoints[-1]} is intact: {resume_command(directory)} resumes from it"
    )
