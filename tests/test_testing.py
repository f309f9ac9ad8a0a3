import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import assert_causal


def mixes(weights):
    """A layer that averages tokens with these weights (T, T)."""
    return lambda x: jnp.einsum("ts,...sd->...td", jnp.asarray(weights, x.dtype), x)


@pytest.mark.parametrize("axis", [-2, 0])
def test_it_names_the_output_and_the_later_input(axis):
    x = jax.random.normal(jax.random.key(0), (4, 3) if axis == 0 else (2, 4, 3))
    assert_causal(mixes(np.tril(np.ones((4, 4)))), x, axis=axis)
    leaky = np.tril(np.ones((4, 4)))
    leaky[1, 3] = 1e-6
    with pytest.raises(AssertionError, match="output 1 depends on the later input 3"):
        assert_causal(mixes(leaky), x, axis=axis)
    with pytest.raises(AssertionError, match="nan"):
        assert_causal(lambda x: jnp.sqrt(x - x) * x, x, axis=axis)


def test_it_finds_what_cancels_in_a_sum():
    x = jax.random.normal(jax.random.key(0), (4, 2))
    with pytest.raises(AssertionError, match="output 0"):
        assert_causal(lambda x: x.at[0].add(jnp.array([1.0, -1.0]) * x[3, 0]), x)


@pytest.mark.parametrize(
    ("function", "x", "error", "words"),
    [
        (lambda x: x, jnp.ones((3, 2), int), TypeError, "x has dtype int32"),
        (lambda x: x[:2], jnp.ones((3, 2)), ValueError, r"the output \(2, 2\)"),
        (lambda x: x.sum(), jnp.ones((3, 2)), ValueError, r"the output \(\)"),
        (lambda x: x, jnp.ones((1, 2)), ValueError, "two or more"),
        (lambda x: x, jnp.ones((3, 0)), ValueError, "no other axis may be empty"),
        (lambda x: x[:, :0], jnp.ones((3, 2)), ValueError, "no other axis may be empty"),
        (lambda x: x, jnp.ones(3), ValueError, r"x has shape \(3,\)"),
        (
            lambda x: (x, x),
            jnp.ones((3, 2)),
            TypeError,
            r"returns a tuple, .* one array: write lambda x: function\(x\)",
        ),
        (lambda x: None, jnp.ones((3, 2)), TypeError, "returns a NoneType"),
    ],
)
def test_bad_input_is_named(function, x, error, words):
    with pytest.raises(error, match=words):
        assert_causal(function, x)


@pytest.mark.parametrize("axis", [2, -3])
def test_an_axis_that_is_not_there_is_named(axis):
    with pytest.raises(ValueError, match=f"on axis {axis} both must have the same number of tokens"):
        assert_causal(lambda x: x, jnp.ones((3, 2)), axis=axis)


@pytest.mark.parametrize(
    "leak",
    [
        lambda x: x / jax.lax.stop_gradient(jnp.abs(x).max()),
        lambda x: x + jnp.sign(x.sum()),
        lambda x: x + jnp.round(x.sum(-2, keepdims=True) * 1e-9),
        lambda x: x + jnp.isfinite(x[-1:] * 0 + 1) * (x[-1:] > 1e6),
    ],
)
def test_it_finds_leaks_that_have_no_gradient(leak):
    x = jax.random.normal(jax.random.key(0), (9, 4))
    with jax.numpy_dtype_promotion("standard"), pytest.raises(AssertionError, match="although its gradient there is 0"):
        assert_causal(leak, x)


def test_it_compares_to_the_last_bit_or_to_a_tolerance():
    x = jax.random.normal(jax.random.key(0), (9, 4))
    rounded = lambda x: x + 1e-6 * jnp.sign(x.sum())  # noqa: E731
    with pytest.raises(AssertionError, match="although its gradient there is 0"):
        assert_causal(rounded, x)
    assert_causal(rounded, x, tolerance=1e-5)
