"""Whether a run fits into this machine's memory; the system would kill one that does not, without a word."""

import os

import jax
from jax.sharding import Mesh

from jaxattn.training.config import TrainConfig
from jaxattn.training.evaluation import EVALUATION_BATCHES


def total_memory() -> float:
    """Return the machine's memory in bytes, or 16 GB where the system does not tell."""
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) if hasattr(os, "sysconf") else 16e9


def check_memory(config: TrainConfig, mesh: Mesh) -> None:
    """Check that what a run needs at least, on CPUs, is in memory together.

    Raises:
        ValueError: it is not.
    """
    if mesh.devices.flat[0].platform != "cpu" or jax.process_count() > 1:
        return  # JAX says when a GPU's memory is full
    vocab_size = config.vocab_size if config.tokenizer == "bpe" else 256
    parameters = vocab_size * config.width + config.layers * 12 * config.width**2
    # Parameters, their gradients, and Muon's moment in float32, on each device that does not split them.
    split = mesh.shape["model"] * (mesh.shape["data"] if config.shard_parameters else 1)
    state = 12 * parameters * (mesh.size // split)
    batches = 2 * EVALUATION_BATCHES * 4 * config.batch_size * (config.context_length + 1)
    if state + batches > total_memory():
        raise ValueError(
            f"this run needs at least {(state + batches) / 1e9:,.0f} GB of memory, but there are "
            f"{total_memory() / 1e9:,.0f} GB: write a smaller --width, --layers, --context-length or --batch-size"
        )
