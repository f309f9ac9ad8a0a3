"""The model of `paper_scale.py` with this machine's rates, beside measured training steps."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from jaxattn.benchmark.measure import Candidate, Row, compiled, interleaved_medians
from jaxattn.benchmark.paper_scale import Layout, Rates, work_of_step
from jaxattn.benchmark.scaling import Problem
from jaxattn.benchmark.volumes import Sizes
from jaxattn.models.gpt import GPT
from jaxattn.training.batches import Batch
from jaxattn.training.devices import make_mesh
from jaxattn.training.optimizer import adamw, cosine_schedule
from jaxattn.training.sharding import shard_batch
from jaxattn.training.step import choose_microbatches, init_state, make_step

PROBLEMS = (Problem(8, 128, 4, 32, 4), Problem(8, 512, 8, 32, 4), Problem(2, 2048, 8, 64, 2))
# Square matrices of this size, and so many numbers to read and write, for each device.
MATRIX, NUMBERS = 1024, 2**24


def check_rows(devices: tuple[int, ...], seconds: float) -> Iterator[Row]:
    """Time steps on so many devices, with the examples split; yield predicted and measured seconds."""
    for n in devices:
        rates = measure_rates(n, seconds)
        for problem in PROBLEMS:
            predicted = predicted_seconds(problem, n, rates)
            measured = interleaved_medians([_step(problem, n)], seconds)["step"]
            rate = {"products": rates.products, "memory": rates.memory}
            yield {"devices": n, **problem._asdict(), **rate, "predicted": predicted, "measured": measured}


def measure_rates(n: int, seconds: float) -> Rates:
    """Measure one device's matrix products and memory while n devices work."""
    matrices, numbers = (_on_devices(n, jnp.ones(shape)) for shape in ((n, MATRIX, MATRIX), (n, NUMBERS)))
    candidates = [
        compiled("products", lambda x: x @ x, matrices),
        compiled("memory", lambda x: x + 1, numbers),
    ]
    times = interleaved_medians(candidates, seconds)
    products = 2 * MATRIX**3 / times["products"]
    return Rates(products, products, 2 * 4 * NUMBERS / times["memory"])


def predicted_seconds(problem: Problem, n: int, rates: Rates) -> float:
    """Predict a step's time from the work of one device."""
    sizes, sequences = Sizes.of_gpt(problem.config), problem.batch_size // n
    return work_of_step(sizes, problem.T, Layout(data=n), 4, False, 1, sequences).seconds(rates)


def _step(problem: Problem, n: int) -> Candidate:
    config, schedule = problem.config, cosine_schedule(1000, 1e-3)
    mesh = make_mesh({"data": n}, problem.batch_size, config.num_heads, config.context_length)
    optimizer = adamw(schedule, mesh)
    state = init_state(GPT(config), optimizer, jax.random.key(0), mesh)
    parts = choose_microbatches(problem.batch_size, problem.T, mesh)
    step = make_step(GPT(config), optimizer, schedule, jax.random.key(1), mesh, parts)
    tokens = np.random.default_rng(0).integers(0, 256, (problem.batch_size, problem.T + 1), np.int32)
    batch = shard_batch(mesh, Batch(tokens))

    def run() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return jax.block_until_ready(metrics)

    run()
    return Candidate("step", run)


def _on_devices(n: int, array: Array) -> Array:
    """Split the first axis over n devices."""
    mesh = make_mesh({"data": n}, n, 1, 1)
    placed: Array = jax.device_put(array, NamedSharding(mesh, PartitionSpec("data")))
    return placed
