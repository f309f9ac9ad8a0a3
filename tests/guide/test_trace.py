import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention,
    SimpleSelfAttention,
)
from jaxattn.guide.trace import trace

X = jax.random.normal(jax.random.key(0), (5, 3))
STAGES = [
    SimpleSelfAttention(),
    SelfAttention(4, use_bias=True),
    CausalAttention(4, 0.4),
    MultiHeadAttentionWrapper(2, 4, 0.4),
    MultiHeadAttention(2, 4, 0.4),
]
named = pytest.mark.parametrize("module", STAGES, ids=lambda module: type(module).__name__)


def softmax(scores):
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@named
@pytest.mark.parametrize("key", [None, 3])
def test_each_step_follows_from_those_before_in_float64(module, key):
    variables = module.init(jax.random.key(1), X)
    drops = key is not None and hasattr(module, "dropout_rate")
    key = jax.random.key(key) if drops else None
    steps = {n: np.asarray(a, np.float64) for n, a in trace(module, variables, X, key).arrays.items()}
    query, key_vectors, value = (steps.get(name, np.asarray(X, np.float64)) for name in ("query", "key", "value"))
    close = {"atol": 2e-6}
    np.testing.assert_allclose(steps["scores"], query @ np.swapaxes(key_vectors, -1, -2), **close)
    before = steps["scores"]
    if "scaled" in steps:
        np.testing.assert_allclose(steps["scaled"], before / np.sqrt(query.shape[-1]), **close)
        before = steps["scaled"]
    if "mask" in steps:
        np.testing.assert_array_equal(steps["mask"], np.tril(np.ones((5, 5))))
        before = np.where(steps["mask"] > 0, before, -np.inf)
        np.testing.assert_allclose(steps["masked"], before, **close)
    np.testing.assert_allclose(steps["weights"], softmax(before), **close)
    weights = steps["weights"]
    assert ("kept" in steps) == drops
    if drops:
        assert 0 < steps["kept"].mean() < 1
        np.testing.assert_allclose(steps["dropped_weights"], weights * steps["kept"] / 0.6, **close)
        weights = steps["dropped_weights"]
    np.testing.assert_allclose(steps["context"], weights @ value, **close)
    if "concatenation" in steps:
        np.testing.assert_allclose(steps["concatenation"], np.concatenate(list(steps["context"]), -1), **close)


@named
def test_the_last_step_is_what_the_module_returns(module):
    variables = module.init(jax.random.key(1), X)
    last = list(trace(module, variables, X).arrays.values())[-1]
    np.testing.assert_allclose(last, module.apply(variables, X), atol=1e-6)


@named
def test_a_trace_is_a_pytree_with_named_axes_and_a_table(module):
    steps = trace(module, module.init(jax.random.key(1), X), X)
    turned = jax.jit(lambda steps: jax.tree.map(lambda a: a[::-1], steps))(steps)
    np.testing.assert_array_equal(turned["weights"], steps["weights"][::-1])
    for name, array in steps.arrays.items():
        assert len(steps.axes(name)) == array.ndim
        assert f">{name}</th>" in steps._repr_html_()


def test_reproduces_the_books_numbers(book):
    steps = trace(SimpleSelfAttention(), {}, jnp.array(book["inputs"]))
    for name in ("scores", "weights", "context"):
        np.testing.assert_allclose(steps[name], book["simple"][name], atol=2e-6)


def test_what_cannot_be_traced_is_named():
    with pytest.raises(TypeError, match="Dense"):
        trace(nn.Dense(3), {}, X)
    with pytest.raises(ValueError, match=r"x\[0\]"):
        trace(SimpleSelfAttention(), {}, X[None])
    with pytest.raises(KeyError, match="it has inputs, scores"):
        trace(SimpleSelfAttention(), {}, X)["mask"]
