"""How a training step scales over devices, in counts read from its compiled programs, which need not run.

Strong scaling keeps the problem and adds devices; weak scaling lets the problem grow with them. What a device sends is
compared with what the split needs on paper (`volumes.py`).
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxattn.benchmark import volumes
from jaxattn.benchmark.hlo import Counts, count
from jaxattn.benchmark.measure import Row
from jaxattn.benchmark.volumes import Sizes
from jaxattn.masks import Causal
from jaxattn.models.gpt import GPT, GPTConfig
from jaxattn.ring.order import choose_layout
from jaxattn.training.batches import Batch
from jaxattn.training.devices import make_mesh
from jaxattn.training.optimizer import adamw, cosine_schedule
from jaxattn.training.sharding import make_ring, shard_batch, state_sharding
from jaxattn.training.step import make_init, make_step

DEVICES = (1, 2, 4, 8)
# Attention is counted in tiles of so many queries and keys; a tile counts if any of its entries is unmasked.
TILE = 128


class Problem(NamedTuple):
    """The sizes of a training step, small enough to compile in seconds."""

    batch_size: int = 8
    T: int = 2048
    heads: int = 8
    head_width: int = 64
    layers: int = 2

    @property
    def config(self) -> GPTConfig:
        """The model, of bytes."""
        return GPTConfig(256, self.T, self.layers, self.heads, self.heads * self.head_width)

    def grown(self, field: str, n: int) -> "Problem":
        """Return a problem with n times as much of something."""
        return self._replace(**{field: n * getattr(self, field)})


class Split(NamedTuple):
    """A way to split a step: its mesh axis, what weak scaling lets grow, and the bytes that a device sends on paper."""

    axis: str
    grows: str
    bytes_on_paper: Callable[[Problem, Sizes, int], float]
    shard_parameters: bool = False


def _of_data(problem: Problem, sizes: Sizes, n: int) -> float:
    return volumes.data_bytes(sizes.parameters, n, 4)


def _of_parameters(problem: Problem, sizes: Sizes, n: int) -> float:
    return volumes.shard_bytes(sizes.parameters, n, 4, gathers=1)


def _of_model(problem: Problem, sizes: Sizes, n: int) -> float:
    return volumes.model_bytes(sizes, problem.batch_size * problem.T, n, 4)


def _of_context(problem: Problem, sizes: Sizes, n: int) -> float:
    keys = volumes.context_bytes(sizes, problem.batch_size * problem.T / n, n, 4)
    return keys + volumes.data_bytes(sizes.parameters, n, 4)


SPLITS = {
    "data": Split("data", "batch_size", _of_data),
    "data, parameters": Split("data", "batch_size", _of_parameters, shard_parameters=True),
    "model": Split("model", "heads", _of_model),
    "context": Split("seq", "T", _of_context),
}
STRONG = Problem()
# The weak problem of one device; eight devices have the strong one.
WEAK = {
    "data": Problem(batch_size=1),
    "data, parameters": Problem(batch_size=1),
    "model": Problem(heads=1),
    "context": Problem(T=256),
}


def use_virtual_devices() -> None:
    """Make eight virtual CPU devices; call this before JAX creates its first array.

    Raises:
        RuntimeError: JAX has its devices already.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(DEVICES))


def scaling_rows(scaling: str) -> Iterator[Row]:
    """Compile "strong" or "weak" problems; yield what one device sends, computes and holds."""
    for name, split in SPLITS.items():
        for n in DEVICES:
            problem = STRONG if scaling == "strong" else WEAK[name].grown(split.grows, n)
            yield {"scaling": scaling, "split": name, "devices": n, **measure_split(split, problem, n)}


def measure_split(split: Split, problem: Problem, n: int) -> Row:
    """Compile a step of a problem on n devices; return the counts of one device."""
    counts, memory = compile_step(problem, split, n)
    tiles = tiles_of_devices(problem.T, n if split.axis == "seq" else 1)
    # Examples and heads are split evenly.
    copies = problem.layers * problem.batch_size * problem.heads / (1 if split.axis == "seq" else n)
    return {
        "bytes_sent": counts.bytes_sent,
        "bytes_on_paper": split.bytes_on_paper(problem, Sizes.of_gpt(problem.config), n),
        "bytes_by_kind": dict(counts.sent),
        "operations": counts.operations,
        "tiles": copies * sum(tiles) / len(tiles),
        "imbalance": max(tiles) * len(tiles) / sum(tiles),
        "memory": memory,
    }


def compile_step(problem: Problem, split: Split, n: int) -> tuple[Counts, int]:
    """Compile a training step in float32 on n devices; return the counts of one device and its memory in bytes."""
    split = split if n > 1 else SPLITS["data"]  # one device has one program
    return _compile_step(problem, split.axis, n, split.shard_parameters)


@functools.cache
def _compile_step(problem: Problem, axis: str, n: int, shard_parameters: bool) -> tuple[Counts, int]:
    config = problem.config
    mesh = make_mesh({axis: n}, problem.batch_size, config.num_heads, config.context_length)
    schedule = cosine_schedule(1000, 1e-3)
    optimizer = adamw(schedule, mesh)

    shapes = jax.eval_shape(make_init(GPT(config), optimizer), jax.random.key(0))
    state = jax.tree.map(_described, shapes, state_sharding(mesh, shapes, shard_parameters))
    tokens = np.zeros((problem.batch_size, problem.T + 1), np.int32)
    model, microbatches = GPT(config, ring=make_ring(mesh, config.num_heads)), 1
    step: Any = make_step(model, optimizer, schedule, jax.random.key(0), mesh, microbatches, shard_parameters)
    compiled = step.lower(state, shard_batch(mesh, Batch(tokens))).compile()
    memory = compiled.memory_analysis()
    # The new state takes the place of the old one.
    return count(compiled.as_text()), memory.argument_size_in_bytes + memory.temp_size_in_bytes


def tiles_of_devices(T: int, n: int) -> list[int]:
    """Count the tiles of causal attention, for one head, that each of n devices has when they share the tokens."""
    layout = choose_layout(Causal(), T, T, n)
    chunk = T // layout.total
    tile = min(TILE, chunk)
    # The last tile of keys that each tile of queries attends to, chunk by chunk.
    last = np.arange(T // tile).reshape(layout.total, -1)
    return [int((1 + last[layout.chunks_of(device)]).sum()) for device in range(n)]


def _described(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
