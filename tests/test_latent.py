"""Latent attention: compared with float64, and decoding with the full pass."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import draw
from flax import nnx

from jaxattn import LatentAttention, Rotary, assert_causal, masks
from jaxattn import nnx as jaxattn_nnx

SIZES = {"latent_width": 6, "head_width": 4, "rotary_width": 2, "value_width": 3}
OPTIONS = [
    {},
    {"query_width": 5, "use_bias": True, "rotary": Rotary(100.0, interleaved=True)},
    {"mask": masks.SlidingWindow(4), "scale": 0.3, "value_width": None},
]
(X,) = draw(0, (2, 20, 8))


def twins(options):
    options = SIZES | {"cache_length": 24} | options
    theirs = jaxattn_nnx.LatentAttention(3, 8, 7, **options, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(theirs, nnx.Param))
    return LatentAttention(3, 7, **options), {"params": params}, theirs


@pytest.mark.parametrize("options", OPTIONS)
def test_the_output_equals_float64_written_out(options):
    layer, variables, _ = twins(options)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    biases = {"query_down", "kv_down", "out"} if "use_bias" in options else set()
    assert {name for name, leaves in params.items() if "bias" in leaves} == biases
    positions = np.arange(20)

    def project(name, x):
        return x @ params[name]["kernel"] + params[name].get("bias", 0)

    def normalize(name, x):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * params[name]["scale"]

    def split(name, x):
        return project(name, x).reshape(2, 20, 3, -1)

    def rotate(x):  # (B, T, H, 2): one pair, turned by its token's position
        cos, sin = (f(positions)[:, None] for f in (np.cos, np.sin))
        return np.stack([x[..., 0] * cos - x[..., 1] * sin, x[..., 0] * sin + x[..., 1] * cos], -1)

    x = np.asarray(X, np.float64)
    if "query_width" in options:
        query = split("query_up", normalize("query_norm", project("query_down", x)))
    else:
        query = split("query", x)
    short = project("kv_down", x)
    latent, rotary_key = normalize("kv_norm", short[..., :6]), rotate(short[..., None, 6:])
    query = np.concatenate([query[..., :4], rotate(query[..., 4:])], -1)
    key = np.concatenate([split("key_up", latent), np.repeat(rotary_key, 3, 2)], -1)
    distance = positions[:, None] - positions
    allowed = (distance >= 0) & (distance < (4 if "mask" in options else 20))
    context, weights = oracle.attend(query, key, split("value_up", latent), allowed, scale=options.get("scale"))
    came = layer.apply(variables, X, return_weights=True)
    np.testing.assert_allclose(came[0], project("out", context.reshape(2, 20, -1)), atol=2e-6)
    np.testing.assert_allclose(came[1], weights, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_decoding_equals_the_full_pass_and_linen_equals_nnx(options):
    layer, variables, theirs = twins(options)
    for init in (layer.init, lambda key, x: layer.init(key, x, decode=True)):
        shapes = jax.eval_shape(init, jax.random.key(0), X)["params"]
        assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables["params"])
    expected = jax.jit(layer.apply)(variables, X)
    np.testing.assert_array_equal(nnx.jit(lambda m, x: m(x))(theirs, X), expected)
    decode = jax.jit(lambda variables, x: layer.apply(variables, x, decode=True, mutable=["cache"]))
    step = nnx.jit(lambda m, x: m(x, decode=True))
    for widths in ([1] * 20, [7, 7, 6]):
        cache = {}
        theirs.init_cache(2)
        for end, width in zip(np.cumsum(widths), widths, strict=True):
            chunk = X[:, end - width : end]
            row, cache = decode(variables | cache, chunk)
            np.testing.assert_allclose(row, expected[:, end - width : end], atol=1e-5)
            np.testing.assert_array_equal(step(theirs, chunk), row)
    assert {name: leaf.shape for name, leaf in cache["cache"].items()} == {
        "latent": (2, 24, 1, 6),
        "rotary_key": (2, 24, 1, 2),
        "length": (2,),
    }
    assert_causal(lambda x: layer.apply(variables, x), X[:, :5])
    _, weights = layer.apply(variables, X, return_weights=True)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


@pytest.mark.slow
def test_lengths_and_gradients_are_those_of_each_example_alone():
    layer, variables, _ = twins({})
    padded = X[:, :6].at[1, 4:].set(jnp.nan)
    _, cache = layer.apply(variables, padded, decode=True, lengths=jnp.array([6, 4]), mutable=["cache"])
    row, _ = layer.apply(variables | cache, jnp.stack([X[0, 6:7], X[1, 4:5]]), decode=True, mutable=["cache"])
    expected = layer.apply(variables, X)
    np.testing.assert_allclose(row[:, 0], jnp.stack([expected[0, 6], expected[1, 4]]), atol=1e-5)


@pytest.mark.slow
def test_dropout_changes_the_output_and_not_its_mean():
    layer, variables, _ = twins({"dropout_rate": 0.5})
    x = X[:1, :4]
    run = jax.jit(jax.vmap(lambda key: layer.apply(variables, x, deterministic=False, dropout_key=key)))
    outputs = np.asarray(run(jax.random.split(jax.random.key(0), 1024)))
    error = outputs.std(0) / 32
    assert (error > 0).all()
    assert (abs(outputs.mean(0) - layer.apply(variables, x)) < 5 * error).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rotary_width": 3}, "rotary_width=3 must be even"),
        ({"latent_width": 0}, "latent_width=0 must be at least 1"),
        ({"query_width": 0}, "query_width=0 must be at least 1"),
        ({"initializers": {"key/kernel": None}}, "initializers has"),
    ],
)
def test_bad_fields_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        LatentAttention(2, 8, **(SIZES | options)).init(jax.random.key(0), X)


def test_sizes_are_whole_numbers_or_named():
    for name in SIZES:
        with pytest.raises(TypeError, match=f"{name} is 2.5, but must be a whole number"):
            jax.eval_shape(LatentAttention(2, 8, **SIZES | {name: 2.5}).init, jax.random.key(0), X)


def test_a_missing_room_is_named_with_what_the_layer_has():
    layer = LatentAttention(2, 8, **SIZES)
    with pytest.raises(ValueError, match="decode=True needs cache_length=") as raised:
        layer.init(jax.random.key(0), X, decode=True)
    assert "rolling" not in str(raised.value)
