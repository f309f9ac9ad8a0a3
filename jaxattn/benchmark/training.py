"""Training steps of a GPT, beside nanoGPT in PyTorch: same parameters, batch, optimizer and precision."""

from typing import Any

import jax
import numpy as np

from jaxattn.benchmark.measure import Candidate
from jaxattn.benchmark.nanogpt import nanogpt_step
from jaxattn.models.gpt import GPT, GPTConfig
from jaxattn.training.batches import Batch
from jaxattn.training.devices import make_mesh
from jaxattn.training.sharding import shard_batch
from jaxattn.training.step import choose_microbatches, init_state, make_optimizer, make_schedule, make_step

BATCH = 32
SHAPE = GPTConfig(vocab_size=256, context_length=128, num_layers=4, num_heads=4, features=128)
# Each run of a candidate takes so many steps, each on tokens of its own.
STEPS = 4


def training_candidates(config: GPTConfig, batch_size: int, name: str = "") -> list[Candidate]:
    """Make both candidates; a run gives the losses and the gradients' norms of a few steps.

    Raises:
        ImportError: torch is missing.
    """
    length, schedule = config.context_length + 1, make_schedule(1000, 1e-3)
    mesh = make_mesh({}, batch_size, config.num_heads, config.context_length)
    state = init_state(GPT(config), make_optimizer(schedule), jax.random.key(0), mesh)
    microbatches = choose_microbatches(batch_size, config.context_length, mesh)
    step = make_step(GPT(config), schedule, jax.random.key(1), mesh, microbatches)
    theirs = nanogpt_step(config, state.params, lambda number: float(schedule(number)))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (STEPS, batch_size, length), np.int32)

    def run_ours() -> Any:
        nonlocal state
        measured = []
        for each in tokens:
            state, metrics = step(state, shard_batch(mesh, Batch(each)))
            measured.append(metrics[:2])
        return [(float(loss), float(norm)) for loss, norm in measured]

    def run_theirs() -> Any:
        return [theirs(each) for each in tokens]

    return [Candidate(f"jaxattn{name}", run_ours), Candidate(f"nanoGPT{name}", run_theirs)]
