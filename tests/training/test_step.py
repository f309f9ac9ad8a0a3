import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import and_slowly
from jax import export

from jaxattn import GPT, GPTConfig
from jaxattn.training.batches import Batch
from jaxattn.training.devices import make_mesh
from jaxattn.training.evaluation import make_mean_loss
from jaxattn.training.optimizer import adamw, cosine_schedule
from jaxattn.training.sharding import state_sharding
from jaxattn.training.step import (
    choose_microbatches,
    init_state,
    make_step,
    summed_loss,
    token_weights,
)

CONFIG = GPTConfig(256, 8, 1, 2, 8, dropout_rate=0.2)
BATCH = Batch(jax.random.randint(jax.random.key(0), (4, 9), 0, 256))
DOCUMENTS = jnp.array([[1] * 9, [1, 1, 1, 2, 2, 2, 2, 3, 3], [1, 2, 3, 3, 3, 3, 0, 0, 0], [1] * 4 + [0] * 5])


def fresh(config=CONFIG, learning_rate=1e-2, steps=60, microbatches=1, **options):
    model, schedule = GPT(config, **options), cosine_schedule(steps, learning_rate)
    mesh = make_mesh({"data": 1}, 4, config.num_heads, config.context_length)
    optimizer = adamw(schedule, mesh)
    state = init_state(model, optimizer, jax.random.key(0), mesh)
    return model, state, make_step(model, optimizer, schedule, jax.random.key(1), mesh, microbatches)


def next_token_loss(model, params, batch):
    return summed_loss(model, params, batch) / token_weights(batch).sum()


def losses_of(model, params, batch):
    """The loss of each next token `(B, T)`, by the formula, in float64."""
    logits = np.asarray(jax.jit(model.apply)({"params": params}, batch.tokens[:, :-1]), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, np.asarray(batch.tokens[:, 1:, None], np.int64), -1)[..., 0]


def test_the_loss_is_the_mean_negative_log_probability_of_the_next_token():
    model, state, _ = fresh()
    expected = losses_of(model, state.params, BATCH).mean()
    assert next_token_loss(model, state.params, BATCH) == pytest.approx(expected, rel=1e-5)
    evaluate = make_mean_loss(model, make_mesh({"data": 1}, 4, 2, 8))
    stacked = Batch(jnp.stack([BATCH.tokens] * 3))
    assert evaluate(state.params, stacked) == pytest.approx(expected, rel=1e-5)


def test_packed_documents_have_the_loss_they_have_alone_and_padding_has_none():
    model, state, _ = fresh()
    alone = []
    for tokens, documents in zip(BATCH.tokens, DOCUMENTS, strict=True):
        for document in range(1, int(documents.max()) + 1):
            alone += list(losses_of(model, state.params, Batch(tokens[documents == document][None]))[0])
    packed = Batch(BATCH.tokens, DOCUMENTS)
    assert next_token_loss(model, state.params, packed) == pytest.approx(np.mean(alone), rel=1e-5)
    other = Batch(jnp.where(DOCUMENTS > 0, BATCH.tokens, 7), DOCUMENTS)
    assert next_token_loss(model, state.params, other) == next_token_loss(model, state.params, packed)


def test_examples_that_fill_up_a_batch_have_no_loss():
    is_real = jnp.array([True, False, True, False])
    expected = np.zeros((4, 8))
    expected[[0, 2]] = 1
    np.testing.assert_array_equal(token_weights(Batch(BATCH.tokens, None, is_real)), expected)
    expected[2] = [0, 0, 1, 1, 1, 0, 0, 0]  # the next token is of the same document
    np.testing.assert_array_equal(token_weights(Batch(BATCH.tokens, DOCUMENTS, is_real)), expected)


@pytest.mark.slow
def test_a_small_model_memorizes_a_batch():
    _, state, step = fresh(GPTConfig(256, 8, 2, 2, 32), steps=150)
    losses = []
    for _ in range(150):
        state, metrics = step(state, BATCH)
        losses.append(float(metrics.loss))
    assert losses[0] == pytest.approx(np.log(256), rel=0.05)
    assert losses[-1] < 0.5


def run(steps=5, batch=BATCH, **options):
    _, state, step = fresh(**options)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    return losses, state.params


def test_the_same_seed_gives_bitwise_equal_losses_and_each_step_drops_other_entries():
    assert run()[0] == run()[0]
    assert len(set(run(learning_rate=0.0)[0])) == 5  # with constant parameters, only dropout differs


@pytest.mark.parametrize("options", [{"microbatches": 2}, *and_slowly({"microbatches": 4}, {"remat": True})], ids=str)
def test_microbatches_and_remat_change_only_rounding(options):
    """With dropout: the dropped entries follow from the example, not from its microbatch."""
    batch = Batch(BATCH.tokens, DOCUMENTS)
    np.testing.assert_allclose(run(5, batch)[0], run(5, batch, **options)[0], rtol=1e-5)


@pytest.mark.slow
def test_the_gradient_norm_equals_that_of_finite_differences():
    model, state, step = fresh(GPTConfig(16, 4, 1, 1, 4))
    batch = Batch(BATCH.tokens[:, :5] % 16)
    flat, restore = jax.flatten_util.ravel_pytree(state.params)
    with jax.enable_x64():
        flat = jnp.asarray(np.asarray(flat, np.float64))
        restore = jax.flatten_util.ravel_pytree(jax.tree.map(lambda p: np.asarray(p, np.float64), state.params))[1]
        loss = jax.jit(lambda flat: next_token_loss(model, restore(flat), batch))
        gradient = jax.lax.map(lambda e: (loss(flat + 1e-5 * e) - loss(flat - 1e-5 * e)) / 2e-5, jnp.eye(len(flat)))
        expected = float(jnp.linalg.norm(gradient))
    assert float(step(state, batch)[1].gradient_norm) == pytest.approx(expected, rel=1e-3)


def test_bfloat16_gives_nearly_the_same_losses_and_keeps_float32_parameters():
    (losses, _), (others, params) = run(3), run(3, dtype=jnp.bfloat16)
    assert losses != others
    np.testing.assert_allclose(losses, others, rtol=1e-2)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_weight_decay_applies_to_matrices_only():
    optimizer = adamw(cosine_schedule(10, 1.0), None)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
    assert (params["kernel"] < 1).all()
    assert (params["bias"] == 1).all()


@pytest.mark.parametrize("steps", [1, 2, 20, 100])
def test_the_learning_rate_warms_up_from_the_first_step_and_decays_to_a_tenth_at_the_last(steps):
    schedule, warmup = cosine_schedule(steps, 0.5), max(1, steps // 20)
    for number in range(1, steps + 1):
        expected = number / warmup
        if number > warmup:
            expected = 0.1 + 0.9 * (1 + np.cos(np.pi * (number - warmup) / (steps - warmup))) / 2
        assert float(schedule(number - 1)) == pytest.approx(0.5 * expected, rel=1e-4)


def test_the_optimizer_is_adamw_of_gradients_clipped_to_norm_1():
    """By the formulas of Loshchilov and Hutter 2019, in NumPy.

    Some gradients are clipped and some are not: AdamW divides by their common size, and would hide the same factor.
    """
    rng, schedule = np.random.default_rng(0), cosine_schedule(10, 0.3)
    params = {"kernel": rng.standard_normal((2, 3)), "bias": rng.standard_normal(3)}
    moments = {name: [np.zeros_like(p), np.zeros_like(p)] for name, p in params.items()}
    optimizer = adamw(schedule, None)
    ours = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    state = optimizer.init(ours)
    for step, size in enumerate((30.0, 0.1, 3.0, 0.01), start=1):
        gradients = {name: size * rng.standard_normal(p.shape) for name, p in params.items()}
        updates, state = optimizer.update(jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), gradients), state, ours)
        ours = optax.apply_updates(ours, updates)
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        for name, gradient in gradients.items():
            clipped = gradient / max(1.0, norm)
            mean, square = moments[name]
            mean[:], square[:] = 0.9 * mean + 0.1 * clipped, 0.99 * square + 0.01 * clipped**2
            step_of_adam = (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.99**step)) + 1e-8)
            decay = 0.1 * params[name] if name == "kernel" else 0.0
            params[name] = params[name] - float(schedule(step - 1)) * (step_of_adam + decay)
    for name, expected in params.items():
        np.testing.assert_allclose(ours[name], expected, rtol=2e-4, atol=2e-5)


def test_the_step_trains_with_this_optimizer_and_reports_its_learning_rate():
    """With a gradient of 0, weight decay alone moves the matrices, by the rate that the step reports."""
    model, state, step = fresh(dataclasses.replace(CONFIG, dropout_rate=0.0), learning_rate=0.5)
    before = jax.tree.map(np.asarray, state.params)
    nothing = Batch(BATCH.tokens, jnp.zeros((4, 9), jnp.int32))  # all padding
    after, metrics = step(state, nothing)
    assert float(metrics.learning_rate) == pytest.approx(0.5 / 3)
    assert float(metrics.gradient_norm) == 0
    kept = jax.tree.map(lambda p: p * (1 - 0.1 * 0.5 / 3 if p.ndim > 1 else 1), before)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after.params, kept)
    # The mean over a single token is its loss.
    alone = losses_of(model, after.params, Batch(BATCH.tokens[:1, :2])).item()
    one = Batch(BATCH.tokens, nothing.documents.at[0, :2].set(1))
    assert float(step(after, one)[1].loss) == pytest.approx(alone, rel=1e-5)


def test_heads_and_feed_forward_layers_are_split_over_the_axis_model_with_their_moments():
    _, state, _ = fresh()
    mesh = make_mesh({"data": 1}, 4, 2, 8)
    columns, rows, bias, whole = (None, "model"), ("model", None), ("model",), ()
    split = dict.fromkeys(["query.kernel", "key.kernel", "value.kernel", "expand.kernel"], columns)
    split |= dict.fromkeys(["query.bias", "key.bias", "value.bias", "expand.bias"], bias)
    split |= dict.fromkeys(["out.kernel", "contract.kernel"], rows)
    found = 0
    for path, sharding in jax.tree_util.tree_leaves_with_path(state_sharding(mesh, state)):
        name = ".".join(str(step.key) for step in path[-2:] if hasattr(step, "key"))
        expected = split.get(name, whole)
        assert tuple(axis for axis in sharding.spec) in (expected, (None,) * len(sharding.spec)), (name, sharding)
        assert ("model" in sharding.spec) == (name in split), (name, sharding)
        found += name in split
    assert found == 3 * len(split)  # the parameters and AdamW's two moments


@pytest.mark.parametrize("devices", [1, 2])
def test_a_microbatch_is_the_largest_that_fits_the_caches_of_a_cpu_and_divides_the_examples(devices):
    def choose(examples, context_length, *requested, platform="cpu"):
        device = SimpleNamespace(platform=platform)
        mesh = SimpleNamespace(shape={"data": devices}, devices=np.array([device] * devices))
        return choose_microbatches(examples * devices, context_length, mesh, *requested)

    # 256 tokens fit: 8 sequences of 32.
    assert [choose(examples, 32) for examples in (1, 8, 9, 16, 24, 10, 13)] == [1, 1, 3, 2, 3, 2, 13]
    assert [choose(6, length) for length in (32, 64, 128, 129, 256, 1024)] == [1, 2, 3, 6, 6, 6]
    assert choose(64, 1024, platform="tpu") == 1
    assert choose(12, 32, 3) == 3
    assert choose(12, 1024, 1) == 1
    with pytest.raises(ValueError, match="--accumulate 5 does not divide the 12 sequences"):
        choose(12, 32, 5)


def test_the_step_donates_its_state():
    _, state, step = fresh()
    step(state, BATCH)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def equations(jaxpr, inside=()):
    """Every equation of a program, as its primitive's name and those of the equations that it is nested in."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name, inside
        for value in equation.params.values():
            if hasattr(inner := getattr(value, "jaxpr", value), "eqns"):
                yield from equations(inner, (*inside, equation.primitive.name))


def test_each_device_sums_its_microbatches_and_the_devices_are_summed_once_at_the_end():
    _, state, step = fresh(microbatches=2)
    found = list(equations(jax.make_jaxpr(step)(state, BATCH).jaxpr))
    sums = [inside for name, inside in found if name.startswith("psum")]
    assert len(sums) == 1 + len(jax.tree.leaves(state.params))  # the loss and each gradient
    assert all("shard_map" in inside and "scan" not in inside for inside in sums)
    assert any(name == "dot_general" and "scan" in inside and "shard_map" in inside for name, inside in found)


def test_the_step_lowers_for_cpu_cuda_and_tpu():
    _, state, step = fresh()
    exported = export.export(step, platforms=("cpu", "cuda", "tpu"))(state, BATCH)
    assert exported.platforms == ("cpu", "cuda", "tpu")
