import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from jaxattn import GPT, GPTConfig
from jaxattn.training.step import init_state, make_optimizer, make_step, next_token_loss

CONFIG = GPTConfig(256, 8, 2, 2, 8, dropout_rate=0.2)
TOKENS = jax.random.randint(jax.random.key(0), (4, 9), 0, 256).astype(jnp.uint8)


def fresh(config=CONFIG, learning_rate=1e-2, steps=60):
    model, optimizer = GPT(config), make_optimizer(steps, learning_rate)
    return model, init_state(model, optimizer, jax.random.key(0)), make_step(model, optimizer, jax.random.key(1))


def test_the_loss_is_the_mean_negative_log_probability_of_the_next_byte():
    model, state, _ = fresh()
    logits = np.asarray(model.apply({"params": state.params}, TOKENS[:, :-1].astype(jnp.int32)), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_p, np.asarray(TOKENS[:, 1:, None], np.int64), -1).mean()
    assert next_token_loss(model, state.params, TOKENS) == pytest.approx(expected, rel=1e-5)


def test_learns_a_batch_by_heart():
    _, state, step = fresh(GPTConfig(256, 8, 2, 2, 32), steps=150)
    losses = []
    for _ in range(150):
        state, loss = step(state, TOKENS)
        losses.append(float(loss))
    assert losses[0] == pytest.approx(np.log(256), rel=0.05)
    assert losses[-1] < 0.5


def test_the_same_seed_gives_the_same_losses_to_the_last_bit_and_each_step_drops_other_cells():
    def losses(learning_rate):
        _, state, step = fresh(learning_rate=learning_rate)
        out = []
        for _ in range(5):
            state, loss = step(state, TOKENS)
            out.append(float(loss))
        return out

    assert losses(1e-2) == losses(1e-2)
    assert len(set(losses(0.0))) == 5  # the parameters stand still, so what differs is dropout


def test_weight_decay_pulls_on_matrices_alone():
    optimizer = make_optimizer(10, 1.0)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
    assert (params["kernel"] < 1).all()
    assert (params["bias"] == 1).all()


def test_the_step_takes_its_state_over():
    _, state, step = fresh()
    step(state, TOKENS)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_the_step_lowers_for_cpu_cuda_and_tpu():
    _, state, step = fresh()
    exported = export.export(step, platforms=("cpu", "cuda", "tpu"))(state, TOKENS)
    assert exported.platforms == ("cpu", "cuda", "tpu")
