"""The loss on fixed batches of the training text and of the held-out text."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxattn.models.gpt import GPT
from jaxattn.training.batches import Batch, make_batch
from jaxattn.training.config import TrainConfig
from jaxattn.training.sharding import replicated, shard_batch, sum_over_data
from jaxattn.training.step import summed_loss, token_weights
from jaxattn.training.text import Corpus

EVALUATION_BATCHES = 16


class Losses(NamedTuple):
    """Mean losses on the fixed batches, in nats per token."""

    train: float
    held_out: float


def choices(loss: float) -> str:
    """Return among how many equally likely tokens a guess has this loss: e to the loss, to three digits.

    Example:
        >>> from jaxattn.training.evaluation import choices
        >>> choices(5.5452), choices(1.81), choices(0.0)
        ('256', '6.11', '1.00')
    """
    number = math.exp(min(loss, 700.0))
    return f"{number:.{max(0, 2 - int(math.log10(max(1.0, number))))}f}" if number < 1e6 else f"{number:.2g}"


class FixedBatches(NamedTuple):
    """The batches on which losses are measured, each stacked: `(EVALUATION_BATCHES, B, context_length + 1)`."""

    train: Batch
    held_out: Batch


def fixed_batches(corpus: Corpus, config: TrainConfig) -> FixedBatches:
    """Read the batches, which follow from the seed."""
    stacked = []
    for part, text in enumerate(corpus):
        batches = [
            make_batch(text, config.batch_size, config.context_length + 1, (config.seed, 0, part, number))
            for number in range(EVALUATION_BATCHES)
        ]
        stacked.append(jax.tree.map(lambda *arrays: np.stack(arrays), *batches))
    return FixedBatches(*stacked)


class Evaluate:
    """Measures the losses of parameters on the fixed batches."""

    def __init__(self, model: GPT, mesh: Mesh, batches: FixedBatches) -> None:
        self._mean_loss = make_mean_loss(model, mesh)
        self._batches = FixedBatches(*(shard_batch(mesh, batch, axis=1) for batch in batches))

    def held_out(self, params: Any) -> float:
        """Return the mean loss on the held-out batches."""
        return float(self._mean_loss(params, self._batches.held_out))

    def both(self, params: Any) -> Losses:
        """Return the mean losses on the batches of both parts."""
        return Losses(float(self._mean_loss(params, self._batches.train)), self.held_out(params))


def make_mean_loss(model: GPT, mesh: Mesh) -> Callable[[Any, Batch], Array]:
    """Compile `(params, batches) -> mean loss` over batches stacked along the first axis."""
    sum_of_batch = sum_over_data(mesh, functools.partial(_loss_and_tokens, model))

    def mean_loss(params: Any, batches: Batch) -> Array:
        loss, tokens = jax.lax.map(functools.partial(sum_of_batch, params), batches)
        return loss.sum() / jnp.maximum(tokens.sum(), 1)

    return jax.jit(mean_loss, out_shardings=replicated(mesh))


def _loss_and_tokens(model: GPT, params: Any, batch: Batch) -> tuple[Array, Array]:
    return summed_loss(model, params, batch), token_weights(batch).sum()
