import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given
from hypothesis import strategies as st

from jaxattn import (
    attention_scores,
    attention_weights,
    context_vectors,
    dropout,
    masks,
    renormalized_weights,
)

DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]


class StepsTest(chex.TestCase, parameterized.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_steps_in_order_are_softmax_attention(self):
        query, key = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(2, 5, 3), (2, 4, 3)]))
        value = jax.random.normal(jax.random.key(2), (2, 4, 6))

        @self.variant
        def attend(query, key, value):
            weights = attention_weights(attention_scores(query, key), scale=3**-0.5)
            return weights, context_vectors(weights, value)

        weights, context = attend(query, key, value)
        q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
        expected = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(3))
        expected /= expected.sum(-1, keepdims=True)
        chex.assert_shape(weights, (2, 5, 4))
        chex.assert_trees_all_close(weights, expected.astype(np.float32), atol=1e-6)
        chex.assert_trees_all_close(context, (expected @ v).astype(np.float32), atol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_a_fully_masked_row_is_zero_with_zero_gradient(self):
        scores = jax.random.normal(jax.random.key(0), (3, 4))
        mask = jnp.array([[True, False, True, False], [False] * 4, [True] * 4])
        for function in (attention_weights, renormalized_weights):
            weights = self.variant(function)(scores, mask)
            chex.assert_trees_all_close(weights.sum(-1), jnp.array([1.0, 0.0, 1.0]), atol=1e-6)
            assert (weights[1] == 0).all()
            assert (weights[0, 1::2] == 0).all()
            gradient = self.variant(jax.grad(lambda s, f=function: (f(s, mask) ** 2).sum()))(scores)
            chex.assert_tree_all_finite(gradient)
            assert (gradient[1] == 0).all()
            assert (abs(gradient[0]) > 1e-3).tolist() == [True, False, True, False]


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 2**31 - 1), st.floats(0.1, 2))
def test_masking_before_softmax_equals_masking_after_and_renormalising(T, S, seed, scale):
    rng = np.random.default_rng(seed)
    scores = jnp.asarray(3 * rng.standard_normal((2, T, S)), jnp.float32)
    mask = jnp.asarray(rng.random((T, S)) < 0.6)
    before, after = (jax.jit(way)(scores, mask, scale=scale) for way in (attention_weights, renormalized_weights))
    chex.assert_trees_all_close(before, after, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_and_softmax_are_float32_or_wider_and_the_context_has_the_values_type(dtype):
    with jax.enable_x64(True):
        x = jnp.ones((3, 4), dtype)
        scores = attention_scores(x, x)
        weights = attention_weights(scores)
        assert scores.dtype == weights.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
        assert context_vectors(weights, x).dtype == dropout(x, 0.5, jax.random.key(0)).dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_scores_give_no_nan(dtype, size):
    with jax.enable_x64(True):
        scores = jnp.array([[size, -size, 0.0], [size, size, size]], dtype)
        weights = attention_weights(scores, jnp.array([[True, True, False], [True, True, True]]))
        chex.assert_tree_all_finite(weights)
        np.testing.assert_allclose(weights, [[size > 0, size < 0, 0], [1 / 3] * 3], atol=1e-6)
        big = jnp.full((2, 4), 200.0, dtype)  # dot products of 160000 overflow float16
        chex.assert_tree_all_finite(attention_weights(attention_scores(big, big)))


@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_rows_are_divided_by_their_sums_in_full_precision_whatever_products_have(precision):
    scores = jnp.zeros((2, 3))
    with jax.default_matmul_precision(precision):
        lowered = jax.jit(jax.grad(lambda s: attention_weights(s, masks.Causal()).sum())).lower(scores).as_text()
        products = [line for line in lowered.splitlines() if "dot_general" in line]
    assert products
    assert all("[HIGHEST, HIGHEST]" in product for product in products)


def test_weights_take_masks_as_values_and_as_arrays():
    scores = jax.random.normal(jax.random.key(0), (2, 3, 3))
    np.testing.assert_array_equal(
        attention_weights(scores, masks.Causal()), attention_weights(scores, jnp.tril(jnp.ones((3, 3), bool)))
    )


def test_dropout_keeps_the_stated_share_and_scales_the_others_by_one_over_one_minus_rate():
    kept = dropout(jnp.ones((64, 128, 128)), 0.1, jax.random.key(0))
    np.testing.assert_allclose(np.unique(kept), [0, 1 / 0.9], rtol=1e-6)
    share = float((kept > 0).mean())
    assert abs(share - 0.9) < 5 * (0.09 / kept.size) ** 0.5
    # Rows, columns and examples each keep the share too, and neighbours fall independently of one another.
    for axes in [(0, 1), (0, 2), (1, 2)]:
        shares = np.asarray((kept > 0).mean(axes))
        bound = 6 * (0.09 * shares.size / kept.size) ** 0.5
        assert np.abs(shares - 0.9).max() < bound
    dropped = np.asarray(kept == 0, np.float64)
    for axis in range(3):
        both = (dropped * np.roll(dropped, 1, axis)).mean()
        assert abs(both - 0.01) < 6 * (0.01 / kept.size) ** 0.5


def test_dropout_follows_its_key_alone():
    weights = jnp.ones((20, 20))
    first, again, other = (dropout(weights, 0.5, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.3
    np.testing.assert_array_equal(dropout(weights, 0.0, jax.random.key(0)), weights)


def test_dropout_takes_a_single_row_too():
    kept = dropout(jnp.ones(1000), 0.25, jax.random.key(0))
    np.testing.assert_allclose(np.unique(kept), [0, 4 / 3], rtol=1e-6)


def test_without_keys_there_are_no_weights_and_the_context_is_zero():
    scores = attention_scores(jnp.ones((3, 4)), jnp.ones((0, 4)))
    weights = attention_weights(scores)
    assert weights.shape == (3, 0)
    np.testing.assert_array_equal(context_vectors(weights, jnp.ones((0, 2))), np.zeros((3, 2)))


def test_vmap_with_split_keys_drops_other_entries_in_each_example():
    kept = jax.vmap(lambda key: dropout(jnp.ones((10, 10)), 0.5, key))(jax.random.split(jax.random.key(0), 6))
    for i in range(6):
        for j in range(i):
            assert 0.25 < (kept[i] != kept[j]).mean() < 0.75


X = jnp.ones((3, 4))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: attention_scores(jnp.ones((3, 4), int), X), TypeError, "query has dtype int32.*embedding"),
        (lambda: attention_scores(X, jnp.ones((3, 5))), ValueError, r"\(3, 4\).*\(3, 5\).*last axis"),
        (lambda: attention_scores(X, X.astype(jnp.bfloat16)), TypeError, "query float32, key bfloat16.*astype"),
        (lambda: attention_scores(X[None], X), ValueError, "leading axes"),
        (lambda: attention_scores(X[0], X), ValueError, r"query has shape \(4,\)"),
        (lambda: attention_weights(X[0]), ValueError, r"scores has shape \(4,\)"),
        (lambda: attention_weights(X, jnp.ones((3, 4))), TypeError, "mask has dtype float32.*True = may attend"),
        (lambda: attention_weights(X, jnp.ones((3, 4), int)), TypeError, "mask has dtype int32.*astype"),
        (lambda: attention_weights(X, jnp.ones((2, 4), bool)), ValueError, r"mask has shape \(2, 4\).*\(3, 4\)"),
        (lambda: attention_weights(X, jnp.ones((2, 3, 4), bool)), ValueError, "mask has shape"),
        (lambda: context_vectors(X, X), ValueError, "weight for each of 4 keys.*3 rows"),
        (lambda: dropout(X, 1.0, jax.random.key(0)), ValueError, r"dropout_rate=1.0 is outside \[0, 1\)"),
        (lambda: dropout(X, -0.1, jax.random.key(0)), ValueError, "dropout_rate=-0.1"),
        (lambda: dropout(X, 0.5, None), ValueError, "key is missing.*jax.random.key"),
        (lambda: dropout(X, 0.5, 0), TypeError, "key is 0.*jax.random.key"),
        (lambda: dropout(X, 0.5, jax.random.split(jax.random.key(0))), ValueError, "one call takes one key.*vmap"),
    ],
)
def test_bad_input_is_named_with_what_to_write(call, error, words):
    with pytest.raises(error, match=words):
        call()
