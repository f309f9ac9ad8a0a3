"""The KV cache of the layer: with it the same numbers as without, and never those of padding or of missing tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import draw

from jaxattn import AttentionLayer, masks


def test_prompts_of_different_lengths_go_on_where_each_ended():
    (x,) = draw(0, (3, 9, 4))
    layer = AttentionLayer(2, 8, rotary_base=100.0, cache_length=9)
    variables = layer.init(jax.random.key(0), x)
    lengths = jnp.array([2, 5, 4])
    full = layer.apply(variables, x)
    padded = jnp.where(jnp.arange(5)[None, :, None] < lengths[:, None, None], x[:, :5], 99.0)
    prefill, cache = layer.apply(variables, padded, decode=True, lengths=lengths, mutable=["cache"])
    for example, length in enumerate(lengths.tolist()):
        np.testing.assert_allclose(prefill[example, :length], full[example, :length], atol=1e-5)
    closed_over = jax.jit(lambda x: layer.apply(variables, x, decode=True, lengths=lengths, mutable=["cache"])[0])
    np.testing.assert_allclose(closed_over(padded), prefill, atol=1e-6)
    step = jax.jit(lambda cache, x: layer.apply(variables | cache, x, decode=True, mutable=["cache"]))
    for number in range(4):
        each = jnp.stack([x[example, n + number] for example, n in enumerate(lengths.tolist())])[:, None]
        row, cache = step(cache, each)
        expected = jnp.stack([full[example, n + number] for example, n in enumerate(lengths.tolist())])[:, None]
        np.testing.assert_allclose(row, expected, atol=1e-5)


def decode_in_steps(layer, variables, x, lengths):
    """Decode chunks, each with the number of its real tokens; return the last output."""
    step = jax.jit(functools.partial(layer.apply, decode=True, mutable=["cache"]))
    for chunk, real in zip(x, lengths, strict=True):
        output, cache = step(variables, chunk, lengths=real)
        variables = variables | cache
    return output, cache["cache"]


@pytest.mark.parametrize(
    "options", [{}, {"rotary_base": 100.0}, {"mask": masks.SlidingWindow(3)}, {"mask": masks.Causal(-1)}]
)
def test_the_cache_has_room_for_real_tokens_and_never_holds_padding(options):
    (x,) = draw(0, (2, 8, 4))
    layer = AttentionLayer(2, 8, cache_length=8, **options)
    variables = layer.init(jax.random.key(0), x)
    full = layer.apply(variables, x)
    # 4 are held. Of the next 6, 4 and 1 are real, so that they fit; the rest is padding, which may even be NaN.
    real = jnp.array([4, 1])
    padded = jnp.concatenate([x[:, 4:], jnp.full((2, 2, 4), jnp.nan)], 1)
    padded = jnp.where(jnp.arange(6)[None, :, None] < real[:, None, None], padded, jnp.nan)
    output, cache = decode_in_steps(layer, variables, [x[:, :4], padded], [None, real])
    np.testing.assert_allclose(output[0, :4], full[0, 4:], atol=1e-5)
    np.testing.assert_allclose(output[1, :1], full[1, 4:5], atol=1e-5)
    assert cache["length"].tolist() == [8, 5]
    assert np.isfinite(cache["key"]).all()
    assert np.isfinite(cache["value"]).all()
    # One more fits in the second example alone.
    output, cache = layer.apply(variables | {"cache": cache}, x[:, 5:6], decode=True, mutable=["cache"])
    assert np.isnan(output[0]).all()
    np.testing.assert_allclose(output[1], full[1, 5:6], atol=1e-5)
    # A chunk may be longer than the cache, if its real tokens fit.
    long = jnp.concatenate([x, jnp.full((2, 3, 4), jnp.nan)], 1)
    output, _ = decode_in_steps(layer, variables, [long], [jnp.array([8, 2])])
    np.testing.assert_allclose(output[0, :8], full[0], atol=1e-5)


@pytest.mark.parametrize("mask", [masks.Causal(), masks.SlidingWindow(2)])
def test_what_has_not_fit_leaves_nan_for_ever_and_for_its_example_alone(mask):
    (x,) = draw(0, (2, 3, 4))
    for cache_length, wrong in (
        (8, -1),
        (8, 4),
        (4, 3),
        (4, 5),
    ):  # negative, more than the tokens, more than the room, both
        layer = AttentionLayer(2, 8, cache_length=cache_length, mask=mask)
        variables = layer.init(jax.random.key(0), x)
        step = jax.jit(functools.partial(layer.apply, decode=True, mutable=["cache"]))
        _, cache = step(variables, x[:, :2], lengths=jnp.array([0, 2]))
        _, cache = step(variables | cache, x, lengths=jnp.array([0, wrong]))
        assert cache["cache"]["length"].tolist() == [0, cache_length + 1]
        for _ in range(4):
            output, cache = step(variables | cache, x[:, :1], lengths=None)
            assert np.isfinite(output[0]).all()
            assert np.isnan(output[1]).all()
    (_, weights), _ = layer.apply(variables | cache, x[:, :1], decode=True, return_weights=True, mutable=["cache"])
    assert np.isnan(weights[1]).all()


def test_keys_beyond_the_filled_part_of_the_cache_are_not_read():
    (x,) = draw(0, (2, 1, 4))
    layer = AttentionLayer(2, 8, cache_length=4096, implementation="blockwise")
    variables = layer.init(jax.random.key(0), x)
    _, cache = layer.apply(variables, x, decode=True, mutable=["cache"])
    expected, _ = layer.apply(variables | cache, x, decode=True, mutable=["cache"])
    poisoned = {name: cache["cache"][name].at[:, 2048:].set(jnp.nan) for name in ("key", "value")}
    cache = {"cache": cache["cache"] | poisoned}
    actual, _ = layer.apply(variables | cache, x, decode=True, mutable=["cache"])
    np.testing.assert_array_equal(actual, expected)


def test_a_full_cache_gives_not_a_number_and_never_wrong_ones():
    (x,) = draw(0, (2, 5, 4))
    layer = AttentionLayer(2, 8, cache_length=6)
    variables = layer.init(jax.random.key(0), x)
    _, cache = layer.apply(variables, x, decode=True, mutable=["cache"])
    fits, cache = layer.apply(variables | cache, x[:, :1], decode=True, mutable=["cache"])
    beyond, _ = layer.apply(variables | cache, x[:, :1], decode=True, mutable=["cache"])
    assert np.isfinite(fits).all()
    assert np.isnan(beyond).all()
