"""Large and small numbers, and many of them: every kernel gives what float64 gives."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import KERNELS, and_slowly, draw, patched, relative_error

from jaxattn import masks
from jaxattn.kernels import blocks, choice, softmax
from jaxattn.kernels.call import checked_call
from jaxattn.kernels.exp2 import exp2


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    with patched((blocks, "SIDE", 32), (choice, "FEW_SCORES_PER_HEAD", 0)):
        yield


def test_exp2_is_exact_to_the_last_bits_and_zero_where_float32_ends():
    x = np.linspace(-126, 127, 5000, dtype=np.float32)
    np.testing.assert_allclose(exp2(jnp.asarray(x)), np.exp2(x.astype(np.float64)), rtol=3e-7)
    assert (exp2(jnp.array([-126.01, -1e30, -jnp.inf])) == 0).all()
    assert jnp.isnan(exp2(jnp.array([jnp.nan]))).all()
    with jax.enable_x64(True):
        np.testing.assert_allclose(exp2(jnp.asarray(x, jnp.float64)), np.exp2(x.astype(np.float64)), rtol=1e-13)


@pytest.fixture(params=KERNELS)
def attend(request):
    return KERNELS[request.param]


def with_gradients(attend, query, key, value, gradient, mask=None, **options):
    context, vjp = jax.vjp(lambda *inputs: attend(*inputs, mask, **options), query, key, value)
    return context, *vjp(gradient)


def float64(query, key, value, gradient, mask=None, **options):
    mask = None if mask is None else mask.array(query.shape[1], key.shape[1])
    context, _ = oracle.attend(query, key, value, mask, **options)
    return context, *oracle.gradients(query, key, value, gradient, mask, **options)[:3]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [1e4, 1e5, 1e6])
@pytest.mark.parametrize("scale", [0.25, -0.25])
def test_weights_are_as_right_for_scores_of_a_million_as_for_scores_of_one(kernel, size, scale):
    # Whole numbers, whose products float32 holds exactly: close scores differ by a few units, and none is rounded.
    query, key, value, gradient = draw(0, *[(1, 70, 2, 4)] * 4)
    shift = round((size / abs(scale)) ** 0.5)
    query = jnp.round(query).at[..., 0].set(shift)
    key = jnp.round(key).at[..., 0].set(shift)
    came = with_gradients(KERNELS[kernel], query, key, value, gradient, masks.Causal(), scale=scale)
    expected = float64(query, key, value, gradient, masks.Causal(), scale=scale)
    for name, a, b in zip(("context", "query", "key", "value"), came, expected, strict=True):
        # The gradients of query and key are differences of numbers as large as the keys and queries.
        largest = np.abs(b).max() if name in ("context", "value") else shift
        assert np.abs(a - b).max() < 4e-6 * largest, name


@pytest.mark.parametrize("scale", [-0.5, *and_slowly(0.0)])
@pytest.mark.parametrize(
    "options", [{"soft_cap": 1.5}, *and_slowly({}, {"bias": np.float32([[[2.0]], [[-3.0]]])})], ids=str
)
def test_a_scale_of_any_sign_gives_the_numbers_of_float64(attend, scale, options):
    arrays = draw(0, *[(1, 70, 2, 4)] * 4)
    options = options | {"scale": scale}
    came = with_gradients(attend, *arrays, masks.Causal(), **options)
    for a, b in zip(came, float64(*arrays, masks.Causal(), **options), strict=True):
        assert relative_error(a, b) < 4e-6


@pytest.mark.parametrize("size", [1e-34, 1e-30, 1e28, 1e34])
def test_values_and_gradients_of_all_magnitudes_survive(attend, size):
    query, key, value, gradient = draw(0, *[(1, 70, 2, 4)] * 4)
    for of_value, of_gradient in ((size, 1.0), (1.0, size)):
        arrays = query, key, value * of_value, gradient * of_gradient
        came, expected = (f(*arrays, masks.Causal()) for f in (lambda *a: with_gradients(attend, *a), float64))
        for a, b in zip(came, expected, strict=True):
            # Processors round what is below the smallest normal number to 0.
            assert np.abs(a - b).max() < 1e-5 * np.abs(b).max() + 70 * float(jnp.finfo(jnp.float32).tiny)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [1e3, 1e9, 1e30, -1e30, -3.4e38])
def test_a_bias_of_any_size_counts_in_the_largest_score(kernel, size):
    attend = KERNELS[kernel]
    query, key, value, gradient = draw(0, *[(1, 70, 2, 4)] * 4)
    bias = jnp.zeros((70, 70)).at[:, 1::2].set(size)
    came, expected = (with_gradients(f, query, key, value, gradient, bias=bias) for f in (attend, KERNELS["dense"]))
    chex.assert_tree_all_finite(came)
    chex.assert_trees_all_close(came, expected, atol=3e-5)
    every = jnp.full((70, 70), size)  # the same for all keys
    if abs(size) < 1e9:
        came = with_gradients(attend, query, key, value, gradient, bias=every)
        chex.assert_trees_all_close(came, with_gradients(attend, query, key, value, gradient), atol=1e-3)


@pytest.mark.parametrize("scale", [-1.0, -20.0, 0.0, 1e-42])
def test_scales_below_zero_and_of_zero(attend, scale):
    query, key, value, gradient = draw(0, *[(1, 70, 2, 4)] * 4)
    came = with_gradients(attend, query, key, value, gradient, scale=scale)
    expected = float64(query, key, value, gradient, scale=scale)
    for a, b in zip(came, expected, strict=True):
        assert np.abs(a - b).max() < 4e-6 * max(1, abs(scale)) * max(1, np.abs(b).max())


def test_a_scale_that_is_not_a_number_gives_none(attend):
    query, key, value = draw(0, *[(1, 70, 2, 4)] * 3)
    assert jnp.isnan(attend(query, key, value, scale=float("nan"))).all()


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4, 1e30])
def test_the_logsumexps_of_two_sets_of_keys_join_to_that_of_both(size):
    one = checked_call(*[jnp.ones((1, 1, 4))] * 3, scale=0.5)
    first, second = draw(0, (6, 5), (6, 3))
    scores = [
        jnp.where(jnp.arange(6)[:, None] % 3 == row, -jnp.inf, array * size) for row, array in ((0, first), (2, second))
    ]
    scores[1] = scores[1].at[3].set(-jnp.inf)  # row 3 may attend to nothing, and rows 0, 2 and 5 to one set alone

    def logsumexp(scores):
        largest = jnp.maximum(scores.max(-1), jnp.finfo(jnp.float32).min)
        return softmax.LogSumExp.of(largest, softmax.exponentials(one, scores, largest[:, None]).sum(-1))

    joined, *shares = softmax.join(one, *map(logsumexp, scores))
    exponents = np.concatenate([np.asarray(array, np.float64) for array in scores], -1) / 2
    largest = exponents.max(-1, initial=-1e300, keepdims=True)
    weights = np.exp(exponents - largest)
    total = weights.sum(-1, keepdims=True)
    weights /= np.where(total == 0, 1, total)
    for share, expected in zip(shares, (weights[:, :5], weights[:, 5:]), strict=True):
        np.testing.assert_allclose(share, expected.sum(-1), rtol=1e-5, atol=1e-6)
    again = softmax.weights_from(one, jnp.concatenate(scores, -1), jax.tree.map(lambda rows: rows[:, None], joined))
    np.testing.assert_allclose(again, weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", sorted(set(KERNELS) - {"dense", "small"}))
@pytest.mark.parametrize("mask", [masks.Causal(), masks.SlidingWindow(20), masks.Lengths(jnp.array([40]))])
def test_blocks_in_which_all_is_masked_are_not_computed(kernel, mask):
    query, key, value, gradient = draw(0, *[(1, 400, 2, 4)] * 4)
    # 0 · NaN is NaN, so a block of keys that is computed shows in the context.
    first = 256
    bad_key, bad_value = (array.at[:, first:].set(jnp.nan) for array in (key, value))
    expected = KERNELS["dense"](query, key, value, mask)
    came = KERNELS[kernel](query, bad_key, bad_value, mask)
    visible = 400 if isinstance(mask, masks.Lengths) else first // 2  # no block reaches further
    chex.assert_trees_all_close(came[:, :visible], expected[:, :visible], atol=1e-5)
    # And a block of queries shows in the gradients of earlier keys.
    if isinstance(mask, masks.SlidingWindow):
        bad_query = query.at[:, first:].set(jnp.nan)
        came, expected = (with_gradients(KERNELS[kernel], q, key, value, gradient, mask) for q in (bad_query, query))
        for a, b in zip(came[2:], expected[2:], strict=True):
            chex.assert_trees_all_close(a[:, :visible], b[:, :visible], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", sorted(set(KERNELS) - {"dense", "small"}))
def test_positions_do_not_overflow_where_scores_number_more_than_a_32_bit_integer_holds(monkeypatch, kernel):
    monkeypatch.setattr(blocks, "SIDE", 512)
    T, size = 2**16, 16
    query, key, value = draw(0, *[(T, 1, 2)] * 3)
    mask = masks.SlidingWindow(size)
    assert checked_call(query, key, value, mask).num_scores > 2**31
    context, of_value = jax.value_and_grad(
        lambda value: KERNELS[kernel](query, key, value, mask)[-1].sum(), has_aux=False
    )(value)
    last = KERNELS["dense"](query[-size:], key[-size:], value[-size:], masks.Causal())
    chex.assert_trees_all_close(context, last[-1].sum(), rtol=1e-5)
    assert np.flatnonzero(np.asarray(of_value).any((1, 2))).tolist() == list(range(T - size, T))
