"""A run in words: what it sets out to do, and what came of it."""

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxattn.training.config import TrainConfig
from jaxattn.training.data import Data

MARGIN = 0.05  # nats by which the held-out loss must fall before a run counts as having learned


class Losses(NamedTuple):
    """Mean losses over fixed batches, in nats for a token."""

    train: float
    held_out: float


class Outcome(NamedTuple):
    """What came of a run."""

    before: Losses
    after: Losses
    bigram: float | None
    tokens_per_second: float | None
    steps: int
    signal: int

    @property
    def learned(self) -> bool:
        """Whether the held-out loss fell by at least the margin; a NaN did not."""
        return self.before.held_out - self.after.held_out >= MARGIN


def introduction(config: TrainConfig, data: Data, mesh: Mesh, params: Any) -> str:
    """Say what is learned, by what, on what."""
    count, (train, held_out) = sum(leaf.size for leaf in jax.tree.leaves(params)), data.corpus
    axes = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "1"
    kind, sizes = mesh.devices.flat[0], f"{config.layers} layers, {config.heads} heads, width {config.width}"
    return (
        f"text       {data.name}: {len(train):,} {data.unit}s to learn from, {len(held_out):,} held out\n"
        f"model      GPT, {sizes}, {count:,} parameters\n"
        f"devices    {axes}, {kind.platform} ({kind.device_kind}), jax {jax.__version__}"
    )


def losses_in_words(outcome: Outcome, unit: str) -> str:
    """Say how the losses changed, and what a bigram model reaches."""

    def loss(nats: float) -> str:
        return f"{nats:.4f} nats ({nats / math.log(2):.4f} bits) per {unit}"

    lines = []
    for name, before, after in zip(("training", "held-out"), outcome.before, outcome.after, strict=True):
        lines += [f"{name} loss before   {loss(before)}", f"{name} loss after    {loss(after)}"]
    if outcome.bigram is not None:
        lines.append(f"bigram's held-out loss {loss(outcome.bigram)}, the yardstick: counted on the same text")
    return "\n".join(lines)


def verdict(outcome: Outcome) -> str:
    """Say whether the run has learned anything.

    Example:
        >>> from jaxattn.training.report import Losses, Outcome, verdict
        >>> verdict(Outcome(Losses(5.0, 5.0), Losses(2.0, 2.5), None, None, 100, 0))
        'The held-out loss went down: it fell by 2.5000 nats, and 0.05 is what counts.'
    """
    fall = outcome.before.held_out - outcome.after.held_out
    change = "went down" if outcome.learned else "did not go down"
    return f"The held-out loss {change}: it fell by {fall:.4f} nats, and {MARGIN} is what counts."
