"""What a run prints at its start and at its end."""

import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxattn.cli import typed
from jaxattn.tasks import Data
from jaxattn.training.config import TrainConfig
from jaxattn.training.evaluation import Losses, choices
from jaxattn.training.recovery import resume_command

MARGIN = 0.05  # nats by which the held-out loss must fall for the run to count as having learned


class Outcome(NamedTuple):
    """The result of a run."""

    before: Losses
    after: Losses
    bigram: float | None
    tokens_per_second: float | None
    steps: int

    @property
    def learned(self) -> bool:
        """Whether the held-out loss fell by at least the margin; False for NaN."""
        return self.before.held_out - self.after.held_out >= MARGIN

    @property
    def exit_status(self) -> int:
        """0 if the model learned, else 1."""
        return 0 if self.learned else 1


class Stopped(NamedTuple):
    """The end of a run that a stop signal ended; nothing more is measured."""

    steps: int
    signal: int

    @property
    def exit_status(self) -> int:
        """The status that shells give to a process that a signal ended."""
        return 128 + self.signal


def introduction(config: TrainConfig, data: Data, mesh: Mesh, params: Any) -> str:
    """Describe data, model and devices, and explain the numbers that follow."""
    count, (train, held_out) = sum(leaf.size for leaf in jax.tree.leaves(params)), data.corpus
    axes = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "1"
    device, unit = mesh.devices.flat[0], data.unit
    sizes = f"{config.layers} layers, {config.heads} heads, width {config.width}"
    vocab_size = data.tokenizer.vocab_size
    return "\n".join(
        [
            f"text       {data.name}: {len(train):,} {unit}s to train on, {len(held_out):,} held out",
            f"model      GPT, {sizes}, {count:,} parameters",
            f"devices    {axes}, {device.platform} ({device.device_kind}), jax {jax.__version__}",
            f"loss       mean of -ln(probability the model gives to the next {unit}), in nats: 0 is certain and right,",
            f"           {math.log(vocab_size):.2f} is a guess among {vocab_size:,} {unit}s",
            "held-out   text that is never trained on: its loss falls only if what was learned applies to new text",
        ]
    )


def summary(outcome: Outcome, unit: str, samples: str, report: str | None, directory: Path | None) -> str:
    """List the losses, the table of samples, the task's report, and what can be done next."""
    lines = ["", *_losses(outcome, unit), "", samples, ""]
    if directory is not None:
        lines.append(f"saved in {directory}: {generate_command(directory)} continues a text with it")
    if report is not None:
        lines.append(report)
    if outcome.tokens_per_second is not None:
        lines.append(f"{outcome.tokens_per_second:,.0f} tokens/s on {jax.devices()[0].platform}")
    return "\n".join(lines)


def generate_command(directory: Path) -> str:
    """Return the command that continues a text with the model in a directory."""
    return f"{typed('generate')} {shlex.quote(str(directory))}"


def resuming(step: int, steps: int, steps_before: int, schedule: Callable[[Any], Any]) -> str:
    """Say where a run continues, and if its number of steps has changed, how the learning rate does."""
    if steps == steps_before:
        return f"resuming from step {step}"
    if step == steps:
        return f"resuming from step {step}, which is now the last, of {steps_before} before"
    first, last = float(schedule(step)), float(schedule(steps - 1))
    return (
        f"resuming from step {step}, to {steps} steps instead of {steps_before}: from here on the learning rate is "
        f"that of a run of {steps} steps, {first:.2g} at step {step + 1} and {last:.2g} at step {steps}"
    )


def stopped(step: int, steps: int, directory: Path | None) -> str:
    """Say after a stop signal what was saved, and how to continue."""
    if directory is None:
        return f"stopped after {step} steps, as requested; nothing was saved, as there is no --out"
    if step == steps:
        return f"stopped after all {steps} steps, which are saved: {generate_command(directory)} continues a text"
    return f"stopped after {step} steps, as requested: {resume_command(directory)} continues"


def complete(steps: int, directory: Path) -> str:
    """Say that there is nothing left to resume."""
    return (
        f"{directory} is complete, all {steps} steps are done: {resume_command(directory)} --steps {2 * steps} trains "
        f"on, {generate_command(directory)} continues a text with it"
    )


def _losses(outcome: Outcome, unit: str) -> list[str]:
    def describe(nats: float) -> str:
        return f"{nats:.4f} nats ({nats / math.log(2):.4f} bits) per {unit}"

    lines = []
    for name, before, after in zip(("training", "held-out"), outcome.before, outcome.after, strict=True):
        lines += [f"{name} loss before   {describe(before)}", f"{name} loss after    {describe(after)}"]
    if outcome.bigram is not None:
        lines += [
            f"bigram held-out loss   {describe(outcome.bigram)}, for comparison:",
            f"                       it predicts the next {unit} from the current one alone, by counting pairs",
        ]
    return lines + _explanation(outcome, unit)


def _explanation(outcome: Outcome, unit: str) -> list[str]:
    """Say what the held-out losses mean in equally likely tokens, if they are numbers."""
    before, after, bigram = outcome.before.held_out, outcome.after.held_out, outcome.bigram
    if not (math.isfinite(before) and math.isfinite(after)):
        return []
    compared = "" if bigram is None else f", and is among {choices(bigram)} for the bigram model"
    return [
        f"Predicting the next held-out {unit} was like choosing among {choices(before)} {unit}s equally likely at the "
        f"start, among {choices(after)} at the end{compared}."
    ]


def verdict(outcome: Outcome, unit: str) -> str:
    """Say in one sentence whether the run has learned anything.

    Example:
        >>> from jaxattn.training.evaluation import Losses
        >>> from jaxattn.training.report import Outcome, verdict
        >>> print(verdict(Outcome(Losses(5.5, 5.5), Losses(2.0, 2.5), None, None, 100), "byte"))
        The model learned: its held-out loss fell from 5.5000 to 2.5000 nats, so on text it has never seen it gives \
the right next byte on average 20.1 times the probability it gave before training.
    """
    before, after = outcome.before.held_out, outcome.after.held_out
    if outcome.learned:
        return (
            f"The model learned: its held-out loss fell from {before:.4f} to {after:.4f} nats, so on text it has never "
            f"seen it gives the right next {unit} on average {math.exp(before - after):,.1f} times the probability it "
            "gave before training."
        )
    return (
        f"The model did not learn: its held-out loss went from {before:.4f} to {after:.4f} nats, and a fall of less "
        f"than {MARGIN} could be chance; train for more --steps, or try another --learning-rate."
    )
