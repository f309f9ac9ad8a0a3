import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxattn import GPTConfig
from jaxattn.models.gpt import GPT
from jaxattn.training.config import TrainConfig
from jaxattn.training.devices import make_mesh
from jaxattn.training.optimizer import linear_schedule, muon, stack_matrices

PARAMS = {
    "embedding": {"embedding": jnp.ones((5, 4))},
    "block_0": {"expand": {"kernel": jnp.ones((4, 6))}, "contract": {"kernel": jnp.ones((6, 4)), "bias": jnp.ones(4)}},
    "block_1": {"expand": {"kernel": jnp.ones((4, 6))}, "contract": {"kernel": jnp.ones((6, 4)), "bias": jnp.ones(4)}},
}


def random_like(params, seed):
    keys = iter(jax.random.split(jax.random.key(seed), 100))
    return jax.tree.map(lambda p: jax.random.normal(next(keys), p.shape), params)


def updates_of(optimizer, params, number=3):
    """The updates of a few steps, with the same gradients for every optimizer."""
    state, updates = optimizer.init(params), []
    for seed in range(number):
        step, state = jax.jit(optimizer.update)(random_like(params, seed), state, params)
        updates.append(step)
    return updates


def test_stacked_matrices_get_the_updates_that_muon_gives_each_alone():
    schedule = linear_schedule(10, 0.02)
    is_in_block = lambda path, p: optax.contrib.MuonDimensionNumbers() if p.ndim == 2 and "block" in str(path) else None  # noqa: E731
    alone = optax.contrib.muon(
        schedule,
        ns_steps=3,
        weight_decay=0.1,
        adam_learning_rate=lambda done: schedule(done) / 2,
        adam_b1=0.8,
        adam_b2=0.95,
        muon_weight_dimension_numbers=lambda params: jax.tree_util.tree_map_with_path(is_in_block, params),
    )
    stacked = muon(schedule, make_mesh({"data": 1}, 4, 2, 8))
    for expected, came in zip(updates_of(alone, PARAMS), updates_of(stacked, PARAMS), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), came, expected)


def test_only_the_matrices_of_the_blocks_are_stacked():
    seen = []
    watch = optax.GradientTransformation(lambda p: seen.append(jax.tree.map(jnp.shape, p)), lambda u, s, p=None: (u, s))
    stack_matrices(watch, make_mesh({"data": 1}, 4, 2, 8)).init(PARAMS)
    assert seen == [
        {
            "embedding.embedding": (5, 4),
            "stack 4x6": (2, 4, 6),
            "stack 6x4": (2, 6, 4),
            "block_0.contract.bias": (4,),
            "block_1.contract.bias": (4,),
        }
    ]


@pytest.mark.parametrize("steps", [1, 2, 60, 400])
def test_the_linear_schedule_warms_up_from_the_first_step_and_ends_above_zero(steps):
    schedule, warmup = linear_schedule(steps, 0.5), max(1, steps // 50)
    rates = [float(schedule(done)) for done in range(steps)]
    expected = [0.5 * min(1, (done + 1) / warmup) * (1 - done / steps) for done in range(steps)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert min(rates) > 0


def test_the_default_recipe_has_no_learned_positions_and_no_biases():
    config = TrainConfig(layers=1, heads=2, width=8).model(256)
    assert config == GPTConfig(256, 64, 1, 2, 8, 0.0, True, True, True, True, False)
    params = jax.eval_shape(GPT(config).init, jax.random.key(0), jnp.zeros(1, jnp.int32))["params"]
    assert set(params) == {"embedding", "block_0"}
    assert {p.ndim for p in jax.tree.leaves(params["block_0"]["attention"]["query"])} == {2}
