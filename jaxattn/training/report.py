"""What a run prints at its start and at its end."""

import math
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxattn.tasks import Data
from jaxattn.training.config import TrainConfig
from jaxattn.training.evaluation import Losses
from jaxattn.training.recovery import resume_command

MARGIN = 0.05  # nats by which the held-out loss must fall for the run to count as having learned


class Outcome(NamedTuple):
    """The result of a run; `signal` is the stop signal that ended it early, or 0."""

    before: Losses
    after: Losses
    bigram: float | None
    tokens_per_second: float | None
    steps: int
    signal: int

    @property
    def learned(self) -> bool:
        """Whether the held-out loss fell by at least the margin; False for NaN."""
        return self.before.held_out - self.after.held_out >= MARGIN


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


def summary(outcome: Outcome, unit: str, prompt: str, sample: str, report: str | None, directory: Path | None) -> str:
    """List the losses, a sample, the task's report, and what can be done next."""
    lines = ["", *_losses(outcome, unit), "", f"sample, after the held-out text {prompt!r}:", sample, ""]
    if directory is not None:
        lines.append(f"saved in {directory}: jaxattn generate {shlex.quote(str(directory))} continues a text with it")
    if report is not None:
        lines.append(report)
    if outcome.tokens_per_second is not None:
        lines.append(f"{outcome.tokens_per_second:,.0f} tokens/s on {jax.devices()[0].platform}")
    if outcome.signal:
        resume = "" if directory is None else f": {resume_command(directory)} continues"
        lines.append(f"stopped after {outcome.steps} steps, as requested{resume}")
    return "\n".join(lines)


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
    return lines


def verdict(outcome: Outcome, unit: str) -> str:
    """Say in one sentence whether the run has learned anything.

    Example:
        >>> from jaxattn.training.evaluation import Losses
        >>> from jaxattn.training.report import Outcome, verdict
        >>> print(verdict(Outcome(Losses(5.5, 5.5), Losses(2.0, 2.5), None, None, 100, 0), "byte"))
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
