"""The GPT in NNX: the parameters, numbers and generated tokens of the one in Linen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxattn
from jaxattn import GPT, GPTConfig
from jaxattn import nnx as jaxattn_nnx

pytestmark = pytest.mark.slow

CONFIG = GPTConfig(vocab_size=11, context_length=9, num_layers=2, num_heads=2, features=8, dropout_rate=0.3)
TOKENS = jax.random.randint(jax.random.key(0), (3, 9), 0, 11)


CHANGED = dataclasses.replace(
    CONFIG, rotary=True, normalize_heads=True, rms_norm=True, squared_relu=True, use_bias=False,
)  # fmt: skip


@pytest.fixture(scope="module", params=[CONFIG, CHANGED], ids=["gpt2", "changed"])
def twins(request):
    model = jaxattn_nnx.GPT(request.param, rngs=nnx.Rngs(0))
    state, keys = nnx.state(model, nnx.Param), iter(jax.random.split(jax.random.key(1), 100))
    state = jax.tree.map(lambda leaf: 0.3 * jax.random.normal(next(keys), leaf.shape), state)
    nnx.update(model, state)
    return model, GPT(request.param), nnx.to_pure_dict(state)


def test_parameters_logits_and_dropout_are_linens(twins):
    model, linen, params = twins
    expected = jax.eval_shape(linen.init, jax.random.key(0), TOKENS)["params"]
    assert jax.tree.map(jnp.shape, expected) == jax.tree.map(jnp.shape, params)
    documents = jnp.array([[1] * 5 + [2] * 4, [7] * 9, [0, 0, 1, 1, 0, 0, 2, 2, 2]])
    run = nnx.jit(lambda m, t, d: (m(t, deterministic=True), m(t, deterministic=True, documents=d)))
    came = run(model, TOKENS, documents)
    linens = jax.jit(lambda p, t, d: (linen.apply(p, t), linen.apply(p, t, documents=d)))
    jax.tree.map(np.testing.assert_array_equal, came, linens({"params": params}, TOKENS, documents))
    key = jax.random.key(3)
    dropped = linen.apply({"params": params}, TOKENS, deterministic=False, dropout_key=key)
    np.testing.assert_allclose(model(TOKENS, rngs=key), dropped, atol=1e-5)
    assert (model(TOKENS) != model(TOKENS)).any()


@pytest.mark.slow
def test_it_generates_linens_tokens_also_beyond_the_context(twins):
    model, linen, params = twins
    for options in ({"temperature": 0}, {"key": jax.random.key(4), "top_k": 3}):
        expected = jaxattn.generate(linen, params, TOKENS[:, :4], 12, lengths=jnp.array([4, 2, 3]), **options)
        came = jaxattn_nnx.generate(model, TOKENS[:, :4], 12, lengths=jnp.array([4, 2, 3]), **options)
        np.testing.assert_array_equal(came, expected)
    model(TOKENS[:, :2], decode=True, deterministic=True)  # a cache of its own does not matter
    expected = jaxattn.generate(linen, params, TOKENS[0, :4], 3, temperature=0)
    assert [int(token) for token in jaxattn_nnx.stream(model, TOKENS[0, :4], 3, temperature=0)] == expected.tolist()


@pytest.mark.slow
def test_recomputing_the_blocks_changes_no_gradient(twins):
    model, _, _ = twins
    again = jaxattn_nnx.GPT(model.config, remat=True, rngs=nnx.Rngs(0))
    nnx.update(again, nnx.state(model, nnx.Param))
    grads = [nnx.grad(lambda m: (m(TOKENS, deterministic=True) ** 2).mean())(m) for m in (model, again)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *grads)
