import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import draw, draw_heads, relative_error
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads
from oracle import attend

from jaxattn import dot_product_attention, masks


@given(
    batch=st.sampled_from([(), (1,), (2,), (0,), (2, 3)]),
    T=st.integers(1, 6),
    S=st.integers(1, 6),
    K=st.integers(1, 3),
    group=st.integers(1, 3),
    mask=st.sampled_from(["none", "causal", "window", "array", "per head"]),
    biased=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
def test_equals_float64_written_out(batch, T, S, K, group, mask, biased, seed):
    query, key, value = draw_heads(seed, batch, T, S, K * group, K)
    mask = {
        "none": None,
        "causal": masks.Causal(S - T),
        "window": masks.SlidingWindow(2, S - T),
        "array": jnp.asarray(np.random.default_rng(seed).random((T, S)) < 0.5),
        "per head": jnp.asarray(np.random.default_rng(seed).random((*batch, K * group, T, S)) < 0.5),
    }[mask]
    mask_array = mask.array(T, S) if isinstance(mask, masks.Mask) else mask
    bias = draw(seed + 1, (K * group, T, S))[0] if biased else None
    attention = jax.jit(functools.partial(dot_product_attention, return_weights=True))
    context, weights = attention(query, key, value, mask, bias=bias)
    expected_context, expected_weights = attend(query, key, value, mask_array, bias=bias)
    chex.assert_shape(context, (*batch, T, K * group, 8))
    assert relative_error(context, expected_context) < 4e-6
    assert relative_error(weights, expected_weights) < 4e-6


@pytest.mark.parametrize(
    "mask", [masks.Lengths(jnp.array([2, 4])), masks.Segments(jnp.array([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]]))]
)
def test_a_batched_mask_holds_for_every_head_of_its_example(mask):
    query, key, value = draw_heads(0, T=5, S=5)
    context = dot_product_attention(query, key, value, mask & masks.Causal())
    mask_array = np.asarray((mask & masks.Causal()).array(5, 5))[:, None]
    assert relative_error(context, attend(query, key, value, mask_array)[0]) < 4e-6
    each = jax.vmap(lambda q, k, v, m: dot_product_attention(q, k, v, m & masks.Causal()))(query, key, value, mask)
    chex.assert_trees_all_close(context, each, atol=1e-6)


@pytest.mark.parametrize("D", [1, 2, 16])
def test_the_scale_is_one_over_the_root_of_the_width(D):
    query, key, value = draw_heads(0, T=3, D=D)
    expected = attend(query, key, value, scale=1 / np.sqrt(D))[0]
    assert relative_error(dot_product_attention(query=query, key=key, value=value, mask=None), expected) < 4e-6


def test_agrees_with_jax_nn_where_both_are_defined():
    query, key, value = draw_heads(0, D_v=4, T=7)
    expected = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    chex.assert_trees_all_close(dot_product_attention(query, key, value, masks.Causal()), expected, atol=1e-6)


def test_the_weights_returned_are_those_before_dropout_and_the_context_those_after():
    query, key, value = draw_heads(0)
    options = {"dropout_rate": 0.3, "dropout_key": jax.random.key(5)}
    plain, weights = dot_product_attention(query, key, value, return_weights=True)
    dropped, same = dot_product_attention(query, key, value, return_weights=True, **options)
    chex.assert_trees_all_equal(weights, same)
    # With the identity for a value, the context is the dropped weights themselves.
    identity = jnp.broadcast_to(jnp.eye(7)[:, None], (2, 7, 3, 7))
    kept = jnp.swapaxes(dot_product_attention(query, key, identity, **options), 1, 2)
    factors = np.asarray(kept) / np.asarray(weights)
    np.testing.assert_allclose(np.unique(factors.round(4)), [0, 1.4286])
    assert relative_error(dropped, attend(query, key, value, factors=factors)[0]) < 4e-6
    # Heads and examples drop independently.
    dropped_entries = (factors == 0).reshape(12, -1)
    assert all((dropped_entries[i] != dropped_entries[j]).any() for i in range(12) for j in range(i))
    assert not np.allclose(plain, dropped)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_entries_drop_at_the_rate_and_independently_of_all_others(rate):
    B, H, T, S = 3, 4, 128, 96
    query, keys = jnp.zeros((B, T, H, 1)), jnp.zeros((B, S, 2, 1))
    identity = jnp.broadcast_to(jnp.eye(S)[:, None], (B, S, 2, S))
    options = {"dropout_rate": rate, "dropout_key": jax.random.key(7), "implementation": "dense"}
    kept = dot_product_attention(query, keys, identity, **options)
    kept = np.swapaxes(kept, 1, 2) * S  # (B, H, T, S): weights of 1 / S before dropout
    np.testing.assert_allclose(np.unique(kept.round(4)), [0, 1 / (1 - rate)], atol=1e-4)
    dropped, deviation = (kept == 0).astype(float), (rate * (1 - rate)) ** 0.5
    # The share of all entries, of each example, head, query and key, and of each lane of a vector register.
    for axes in [(0, 1, 2, 3), (1, 2, 3), (0, 2, 3), (2, 3), (0, 1, 3), (0, 1, 2)]:
        shares = dropped.mean(axes)
        assert np.abs(shares - rate).max() < 5 * deviation * (shares.size / dropped.size) ** 0.5
    for lanes in (2, 4, 8, 16):
        shares = dropped.reshape(-1, lanes).mean(0)
        assert np.abs(shares - rate).max() < 5 * deviation * (lanes / dropped.size) ** 0.5
    # Two examples, heads, queries or keys at any distance: both drop as often as independent ones do.
    for axis in range(4):
        for distance in range(1, min(dropped.shape[axis], 20)):
            both = (dropped * np.roll(dropped, distance, axis)).mean()
            assert abs(both - rate**2) < 5 * rate * (1 - rate**2) ** 0.5 / dropped.size**0.5


def test_the_causal_mask_stays_with_dropout_and_with_returned_weights():
    query, key, value = draw_heads(0, T=7)
    for rate in (0.0, 0.5):
        for return_weights in (False, True):
            run = lambda key, value, rate=rate, r=return_weights: dot_product_attention(  # noqa: E731
                query, key, value, masks.Causal(), dropout_rate=rate, dropout_key=jax.random.key(0), return_weights=r
            )
            before = run(key, value)
            after = run(key.at[:, 4:].add(1), value.at[:, 4:].add(1))
            before, after = (out[0] if return_weights else out for out in (before, after))
            chex.assert_trees_all_equal(before[:, :4], after[:, :4])
            assert (before[:, 4:] != after[:, 4:]).any()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_the_type_that_goes_in_comes_out_and_sums_are_wide(dtype):
    with jax.enable_x64(True):
        query, key, value = draw_heads(0, dtype=dtype)
        context = dot_product_attention(query, key, value)
        expected = attend(query, key, value)[0]
        assert context.dtype == dtype
        # One rounding to the type at the end, nothing before it.
        assert relative_error(context, expected) < 2 * float(jnp.finfo(dtype).eps)


def test_a_query_that_may_attend_to_nothing_gets_zero_with_finite_gradients():
    query, key, value = draw_heads(0)
    mask = jnp.ones((5, 7), bool).at[2].set(False)
    run = lambda query, key, value: dot_product_attention(query, key, value, mask)  # noqa: E731
    assert (run(query, key, value)[:, 2] == 0).all()
    gradients = jax.grad(lambda *args: (run(*args) ** 2).sum(), argnums=(0, 1, 2))(query, key, value)
    chex.assert_tree_all_finite(gradients)
    assert (gradients[0][:, 2] == 0).all()


@pytest.mark.slow
def test_gradients_match_finite_differences():
    with jax.enable_x64(True):
        query, key, value = draw_heads(0, T=3, S=4, D_v=2, dtype=jnp.float64)
        (bias,) = draw(1, (6, 3, 4), dtype=jnp.float64)

        @jax.jit
        def run(query, key, value, bias):
            return dot_product_attention(
                query, key, value, masks.Causal(1), bias=bias, dropout_rate=0.2, dropout_key=jax.random.key(0)
            )

        check_grads(run, (query, key, value, bias), order=2, rtol=1e-6)


Q, K, V = draw_heads(0)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: dot_product_attention(Q.astype(int), K, V), TypeError, "query has dtype int32"),
        (lambda: dot_product_attention(Q, K, V.astype(jnp.float16)), TypeError, "value float16.*astype"),
        (lambda: dot_product_attention(Q[0], K, V), ValueError, r"\(5, 6, 4\).*same batch"),
        (lambda: dot_product_attention(Q, K[:, :, :2], V[:, :, :2]), None, ""),
        (lambda: dot_product_attention(Q[:, :, :5], K, V), ValueError, "5 query heads cannot share 3 KV heads"),
        (lambda: dot_product_attention(Q, K[:, :6], V), ValueError, "key and value must agree"),
        (lambda: dot_product_attention(Q, K[..., :3], V), ValueError, "width D"),
        (lambda: dot_product_attention(Q, K, V, jnp.ones((2, 5, 7), bool)), ValueError, "mask has shape.*None"),
        (lambda: dot_product_attention(Q, K, V, jnp.ones((5, 7))), TypeError, "mask has dtype float32.*True = may"),
        (lambda: dot_product_attention(Q, K, V, bias=jnp.ones((4, 7))), ValueError, r"bias has shape \(4, 7\)"),
        (lambda: dot_product_attention(Q, K, V, dropout_rate=0.1), ValueError, "dropout_key is missing"),
        (lambda: dot_product_attention(Q, K, V, dropout_rate=1.0), ValueError, "dropout_rate=1.0"),
        (lambda: dot_product_attention(Q, K, V, implementation="fast"), ValueError, "implementation='fast'"),
    ],
)
def test_bad_input_is_named_with_what_to_write(call, error, words):
    if error is None:
        assert call().shape == (2, 5, 6, 8)
        return
    with pytest.raises(error, match=words):
        call()
