import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import (
    GPT,
    CausalAttention,
    GPTConfig,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention,
    SimpleSelfAttention,
)
from jaxattn.guide.trace import trace
from jaxattn.guide.trained import trace_layers

X = jax.random.normal(jax.random.key(0), (5, 3))
STAGES = [
    SimpleSelfAttention(),
    SelfAttention(4, use_bias=True),
    CausalAttention(4, 0.4),
    MultiHeadAttentionWrapper(2, 4, 0.4),
    MultiHeadAttention(2, 4, 0.4),
]
every_stage = pytest.mark.parametrize("module", STAGES, ids=lambda module: type(module).__name__)


def softmax(scores):
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@every_stage
@pytest.mark.parametrize("key", [None, 3])
def test_each_step_follows_from_those_before_in_float64(module, key):
    variables = module.init(jax.random.key(1), X)
    has_dropout = key is not None and hasattr(module, "dropout_rate")
    key = jax.random.key(key) if has_dropout else None
    steps = {name: np.asarray(array, np.float64) for name, array in trace(module, variables, X, key).arrays.items()}
    x, close = np.asarray(X, np.float64), {"atol": 2e-6}
    queries, keys, values = (steps.get(name, x) for name in ("queries", "keys", "values"))
    np.testing.assert_allclose(steps["scores"], queries @ np.swapaxes(keys, -1, -2), **close)
    scores = steps["scores"]
    if "scaled" in steps:
        np.testing.assert_allclose(steps["scaled"], scores / np.sqrt(queries.shape[-1]), **close)
        scores = steps["scaled"]
    if "mask" in steps:
        np.testing.assert_array_equal(steps["mask"], np.tril(np.ones((5, 5))))
        scores = np.where(steps["mask"] > 0, scores, -np.inf)
        np.testing.assert_allclose(steps["masked"], scores, **close)
    np.testing.assert_allclose(steps["weights"], softmax(scores), **close)
    weights = steps["weights"]
    assert ("kept_weights" in steps) == has_dropout
    if has_dropout:
        kept = steps["kept_weights"] > 0
        assert 0 < kept[..., steps["mask"] > 0].mean() < 1
        np.testing.assert_allclose(steps["kept_weights"], weights * kept / 0.6, **close)
        weights = steps["kept_weights"]
    np.testing.assert_allclose(steps["context"], weights @ values, **close)
    if "concatenation" in steps:
        np.testing.assert_allclose(steps["concatenation"], np.concatenate(list(steps["context"]), -1), **close)


@every_stage
@pytest.mark.parametrize("key", [None, 3])
def test_the_last_step_is_what_the_module_returns(module, key):
    variables = module.init(jax.random.key(1), X)
    key = None if key is None else jax.random.key(key)
    last = list(trace(module, variables, X, key).arrays.values())[-1]
    np.testing.assert_allclose(last, module.apply(variables, X, key is None, key), atol=1e-6)


@every_stage
def test_a_trace_is_a_pytree_with_named_axes(module):
    steps = trace(module, module.init(jax.random.key(1), X), X)
    reversed_steps = jax.jit(lambda steps: jax.tree.map(lambda a: a[::-1], steps))(steps)
    np.testing.assert_array_equal(reversed_steps["weights"], steps["weights"][::-1])
    assert all(len(steps.axes(name)) == array.ndim for name, array in steps.arrays.items())
    assert steps.axes("weights")[-2:] == ("query", "key")


@pytest.mark.filterwarnings("ignore:The chararray class is deprecated")  # treescope 0.1.10 looks at numpy.char
@every_stage
def test_a_notebook_draws_every_array_with_its_axes(module, monkeypatch):
    treescope = pytest.importorskip("treescope", reason="draws arrays: install the extra guide")
    steps, drawn, draw = trace(module, module.init(jax.random.key(1), X), X), [], treescope.render_array

    def record(array, **options):
        drawn.append((array, options["axis_labels"]))
        return draw(array, **options)

    monkeypatch.setattr(treescope, "render_array", record)
    assert "treescope" in steps._repr_html_()
    for (array, labels), name in zip(drawn, steps.arrays, strict=True):
        assert array is steps[name]
        expected = [f"{axis}: {size}" for axis, size in zip(steps.axes(name), array.shape, strict=True)]
        assert list(labels.values()) == expected


def test_reproduces_the_books_numbers(book):
    steps = trace(SimpleSelfAttention(), {}, jnp.array(book["inputs"]))
    for name in ("scores", "weights", "context"):
        np.testing.assert_allclose(steps[name], book["simple"][name], atol=2e-6)


def test_other_modules_batches_and_unknown_steps_are_refused_by_name():
    with pytest.raises(TypeError, match="Dense"):
        trace(nn.Dense(3), {}, X)
    with pytest.raises(ValueError, match=r"x\[0\]"):
        trace(SimpleSelfAttention(), {}, X[None])
    with pytest.raises(KeyError, match="it has inputs, scores"):
        trace(SimpleSelfAttention(), {}, X)["mask"]


@pytest.mark.parametrize(
    "changes", [{}, {"rotary": True, "normalize_heads": True, "rms_norm": True, "use_bias": False}]
)
def test_the_trace_of_a_trained_model_has_the_weights_that_the_model_computes(changes):
    model, tokens = GPT(GPTConfig(11, 9, 2, 2, 8, **changes)), jnp.array([3, 1, 4, 1, 5])
    params = model.init(jax.random.key(0), tokens)["params"]
    params = jax.tree.map(lambda p: p + 0.5 * jax.random.normal(jax.random.key(1), p.shape), params)
    _, layers = trace_layers(model, params, tokens)
    _, state = model.apply({"params": params}, tokens, mutable=["intermediates"])
    for number, steps in enumerate(layers):
        (expected,) = state["intermediates"][f"block_{number}"]["attention"]["weights"]
        np.testing.assert_allclose(steps["weights"], expected, atol=1e-5)
        scaled = np.einsum("hqd,hkd->hqk", steps["queries"], steps["keys"]) / 2
        np.testing.assert_allclose(steps["scaled"], scaled, atol=1e-5)
