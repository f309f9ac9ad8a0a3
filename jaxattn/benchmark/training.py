"""Training steps of a GPT, beside nanoGPT in PyTorch: same parameters, batches, optimizer and precision."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxattn.benchmark.measure import Candidate, Comparison
from jaxattn.benchmark.nanogpt import nanogpt_step
from jaxattn.models.gpt import GPT, GPTConfig
from jaxattn.training.batches import Batch
from jaxattn.training.devices import make_mesh
from jaxattn.training.optimizer import adamw, cosine_schedule
from jaxattn.training.sharding import shard_batch
from jaxattn.training.step import choose_microbatches, init_state, make_step

BATCH_SIZE = 32
CONFIG = GPTConfig(vocab_size=256, context_length=128, num_layers=4, num_heads=4, features=128)
# Each run of a candidate takes this many steps, each on tokens of its own.
STEPS = 4
# AdamW divides small gradients by their own size, so rounding errors grow over a few steps.
TOLERANCE = 1e-3


def compare_training() -> Comparison:
    """Compare training steps without dropout and with it; with dropout, results are random and not compared."""
    with_dropout = dataclasses.replace(CONFIG, dropout_rate=0.1)
    candidates = training_candidates(CONFIG, BATCH_SIZE) + [
        candidate._replace(name=f"{candidate.name}, dropout 0.1", deterministic=False)
        for candidate in training_candidates(with_dropout, BATCH_SIZE)
    ]
    tokens = BATCH_SIZE * CONFIG.context_length
    setting = {"B": BATCH_SIZE, "T": CONFIG.context_length}
    return Comparison("training", setting, candidates, TOLERANCE, repeats=STEPS, tokens=tokens)


def training_candidates(config: GPTConfig, batch_size: int) -> list[Candidate]:
    """Make both candidates; a run returns the losses and gradient norms of a few steps.

    Raises:
        ImportError: torch is missing.
    """
    length, schedule = config.context_length + 1, cosine_schedule(1000, 1e-3)
    mesh = make_mesh({}, batch_size, config.num_heads, config.context_length)
    optimizer = adamw(schedule, mesh)
    state = init_state(GPT(config), optimizer, jax.random.key(0), mesh)
    parts = choose_microbatches(batch_size, config.context_length, mesh)
    step = make_step(GPT(config), optimizer, schedule, jax.random.key(1), mesh, parts)
    peer_step = nanogpt_step(config, state.params, lambda number: float(schedule(number)))
    batches = np.random.default_rng(0).integers(0, config.vocab_size, (STEPS, batch_size, length), np.int32)

    def run_ours() -> Any:
        nonlocal state
        metrics = []
        for tokens in batches:
            state, measures = step(state, shard_batch(mesh, Batch(tokens)))
            metrics.append(measures[:2])
        return [(float(loss), float(norm)) for loss, norm in metrics]

    def run_peer() -> Any:
        return [peer_step(tokens) for tokens in batches]

    return [Candidate("jaxattn", run_ours), Candidate("nanoGPT", run_peer)]
