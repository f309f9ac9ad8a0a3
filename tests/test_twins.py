"""Linen's layer and NNX's: the same fields, the same calls, the same parameters, the same bits."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import draw
from flax import nnx

from jaxattn import AttentionLayer, LatentAttention, RelativeBias, Rotary, masks
from jaxattn.nnx import LatentAttention as NNXLatentAttention
from jaxattn.nnx import MultiHeadAttention
from jaxattn.rotary import Llama3Scaling, YarnScaling

X, CONTEXT = draw(0, (2, 20, 6), (2, 7, 3))
OPTIONS = {
    "defaults": {},
    "llama": {"num_kv_heads": 2, "rotary": Rotary(100.0, scaling=Llama3Scaling(8.0, 1.0, 4.0, 32)), "head_width": 6},
    "qwen": {"use_bias": True, "use_out_bias": False, "normalize_heads": "rms", "rotary_base": 100.0},
    "gemma": {"normalize_heads": "rms_plus_one", "soft_cap": 2.0, "scale": 0.3, "out_features": 5},
    "gpt-oss": {"use_sinks": True, "rotary": Rotary(scaling=YarnScaling(4.0, 8)), "mask": masks.SlidingWindow(4)},
    "gpt-neox": {"rotary": Rotary(100.0, width=2, interleaved=True), "use_bias": True},
    "alibi": {"position_bias": "alibi"},
    "t5": {"position_bias": RelativeBias(8, 12), "scale": 1.0, "use_out_bias": False},
    "rolling": {"mask": masks.SlidingWindow(4), "cache_length": None, "rolling_cache": True, "rotary_base": 100.0},
    "rolling alibi": {"mask": masks.SlidingWindow(3), "cache_length": None, "rolling_cache": True,
                      "position_bias": "alibi", "normalize_heads": True},
    "bfloat16": {"dtype": jnp.bfloat16, "rotary_base": 100.0},
}  # fmt: skip


def twins(x=X, **options):
    """A Linen layer, random variables, and the NNX layer with the same ones."""
    options = {"cache_length": 24} | options
    linen, theirs = AttentionLayer(4, 8, **options), MultiHeadAttention(4, x.shape[-1], 8, **options, rngs=nnx.Rngs(0))
    state = nnx.state(theirs, nnx.Param)
    keys = iter(jax.random.split(jax.random.key(5), 100))
    state = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape, leaf.dtype) / 2, state)
    nnx.update(theirs, state)
    return linen, {"params": nnx.to_pure_dict(state)}, theirs


def test_both_have_the_same_fields_and_arguments():
    linen = {field.name for field in dataclasses.fields(AttentionLayer)} - {"parent", "name"}
    constructor = inspect.signature(MultiHeadAttention.__init__).parameters
    theirs = set(constructor) - {"self"}
    assert theirs - linen == {"in_features", "context_features", "rngs"}
    assert linen <= theirs
    defaults = {name: parameter.default for name, parameter in constructor.items()}
    for field in dataclasses.fields(AttentionLayer):
        if field.default is not dataclasses.MISSING and field.name not in ("parent", "name"):
            assert callable(field.default) or defaults[field.name] == field.default, field.name
    linen, theirs = (
        set(inspect.signature(layer.__call__).parameters) for layer in (AttentionLayer, MultiHeadAttention)
    )
    assert (linen - theirs, theirs - linen) == ({"dropout_key"}, {"rngs"})


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("defaults", "gemma", "t5", "rolling") else pytest.param(name, marks=pytest.mark.slow)
        for name in OPTIONS
    ],
)
def test_the_same_parameters_give_the_same_bits(name):
    linen, variables, theirs = twins(**OPTIONS[name])
    init = jax.eval_shape(linen.init, jax.random.key(0), X)["params"]
    assert jax.tree.structure(init) == jax.tree.structure(variables["params"])
    assert jax.tree.map(jnp.shape, init) == jax.tree.map(jnp.shape, variables["params"])
    expected = jax.jit(functools.partial(linen.apply, return_weights=True))(variables, X)
    came = nnx.jit(lambda layer, x: layer(x, return_weights=True))(theirs, X)
    jax.tree.map(np.testing.assert_array_equal, came, expected)
    decode = jax.jit(lambda variables, x: linen.apply(variables, x, decode=True, mutable=["cache"]))
    step = nnx.jit(lambda layer, x: layer(x, decode=True))
    for chunk in (X[:, :3], X[:, 3:4], X[:, 4:5]):
        expected, cache = decode(variables, chunk)
        variables |= cache
        np.testing.assert_array_equal(step(theirs, chunk), expected)
        jax.tree.map(
            np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(theirs, nnx.Cache))["cache"], cache["cache"]
        )


def test_parameters_begin_as_the_fields_say_and_have_their_type():
    constant = jax.nn.initializers.constant
    fields = {"use_bias": True, "param_dtype": jnp.float16, "kernel_init": constant(2.0), "bias_init": constant(3.0)}
    heads = fields | {"normalize_heads": "rms", "use_sinks": True, "position_bias": RelativeBias(8, 12)}
    latents = fields | {"latent_width": 6, "head_width": 4, "rotary_width": 2, "query_width": 5}
    begins = {"kernel": 2, "bias": 3, "scale": 1, "sinks": 0, "relative_bias": 0}
    gemma = heads | {"normalize_heads": "rms_plus_one"}
    for linen, theirs, expected in (
        (AttentionLayer(4, 8, **heads), MultiHeadAttention(4, 6, 8, **heads, rngs=nnx.Rngs(0)), begins),
        (AttentionLayer(4, 8, **gemma), MultiHeadAttention(4, 6, 8, **gemma, rngs=nnx.Rngs(0)), begins | {"scale": 0}),
        (LatentAttention(3, 7, **latents), NNXLatentAttention(3, 6, 7, **latents, rngs=nnx.Rngs(0)), begins),
    ):
        ours = jax.jit(linen.init)(jax.random.key(0), X)["params"]
        for params in (ours, nnx.to_pure_dict(nnx.state(theirs, nnx.Param))):
            for path, leaf in jax.tree.leaves_with_path(params):
                assert leaf.dtype == jnp.float16, path
                assert (leaf == expected[path[-1].key]).all(), path


def test_each_parameter_can_have_an_initializer_of_its_own():
    heads = {"use_bias": True, "normalize_heads": "rms", "use_sinks": True, "position_bias": RelativeBias(8, 12)}
    latents = {"latent_width": 6, "head_width": 4, "rotary_width": 2, "query_width": 5, "use_bias": True}
    for linen, nnx_class, fields in (
        (AttentionLayer, MultiHeadAttention, heads),
        (LatentAttention, NNXLatentAttention, latents),
    ):
        shapes = jax.eval_shape(linen(4, 8, **fields).init, jax.random.key(0), X)["params"]
        paths = ["/".join(step.key for step in path) for path, _ in jax.tree.leaves_with_path(shapes)]
        own = fields | {"initializers": {path: jax.nn.initializers.constant(n) for n, path in enumerate(paths)}}
        ours = jax.jit(linen(4, 8, **own).init)(jax.random.key(0), X)["params"]
        theirs = nnx.to_pure_dict(nnx.state(nnx_class(4, 6, 8, **own, rngs=nnx.Rngs(0)), nnx.Param))
        for params in (ours, theirs):
            for n, leaf in enumerate(jax.tree.leaves(params)):
                assert (leaf == n).all(), paths[n]


def test_nnx_captures_the_steps_that_linen_sows():
    linen, variables, theirs = twins(**OPTIONS["gemma"])
    _, collected = linen.apply(variables, X, mutable=["intermediates"])
    output, captured = nnx.capture(theirs, nnx.Intermediate)(X)
    steps = nnx.to_pure_dict(captured)
    assert set(steps) == {"queries", "keys", "values", "scores", "weights", "kept_weights", "context"}
    jax.tree.map(np.testing.assert_array_equal, steps, dict(collected["intermediates"]))
    np.testing.assert_array_equal(output, theirs(X))
    assert not nnx.state(theirs, nnx.Intermediate)  # nothing is kept without nnx.capture, or after it


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("defaults", "gpt-oss", "rolling alibi") else pytest.param(name, marks=pytest.mark.slow)
        for name in OPTIONS
        if name != "bfloat16"
    ],
)
def test_tokens_one_by_one_and_in_chunks_equal_the_full_pass(name):
    linen, variables, _ = twins(**OPTIONS[name])
    expected = jax.jit(linen.apply)(variables, X)
    decode = jax.jit(lambda variables, x: linen.apply(variables, x, decode=True, mutable=["cache"]))
    for widths in ([1] * 20, [7, 7, 6]):
        rows, cache = [], {}
        for end, width in zip(np.cumsum(widths), widths, strict=True):
            row, cache = decode(variables | cache, X[:, end - width : end])
            rows.append(row)
        np.testing.assert_allclose(jnp.concatenate(rows, 1), expected, atol=1e-5)
