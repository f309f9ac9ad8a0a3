"""Every kernel is compared with float64 NumPy, at block sizes that put block borders everywhere."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import (
    KERNELS,
    MASKS,
    POSITION_MASKS,
    and_slowly,
    draw,
    draw_heads,
    draw_mask,
    kept_factors,
    patched,
    relative_error,
)
from hypothesis import given
from hypothesis import strategies as st

from jaxattn import assert_causal, masks
from jaxattn.benchmark import cases as benchmark
from jaxattn.kernels import blocks, choice, small, transforms
from jaxattn.kernels.call import checked_call


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Blocks of 32 tokens, so that small arrays have many; and the kernel for few scores at any size."""
    with patched(
        (blocks, "SIDE", 32),
        (blocks, "SCORES_CPU", 2048),
        (choice, "FEW_SCORES_PER_HEAD", 0),
        (small, "FEW_SCORES_IN_ALL", 2**30),
    ):
        yield


@pytest.fixture(params=KERNELS)
def attend(request):
    return KERNELS[request.param]


@given(
    kernel=st.sampled_from([*KERNELS, "blockwise"]),
    batch=st.sampled_from([(), (1,), (2,), (2, 3)]),
    T=st.integers(1, 130),
    S=st.integers(1, 130),
    K=st.integers(1, 3),
    group=st.integers(1, 3),
    kind=st.sampled_from([*MASKS, *POSITION_MASKS]),
    bias=st.sampled_from([None, (1, 1, 1), (0, 1, 1), (1, 0, 1), (0, 0, 0)]),
    rate=st.sampled_from([0.0, 0.3]),
    size=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 2**31 - 1),
)
def test_context_and_gradients_equal_float64_written_out(kernel, batch, T, S, K, group, kind, bias, rate, size, seed):
    H = K * group
    query, key, value, gradient = draw(seed, (*batch, T, H, 4), (*batch, S, K, 4), (*batch, S, K, 3), (*batch, T, H, 3))
    query = query * size
    mask = draw_mask(kind, batch, T, S, H, seed)
    if bias is not None:
        (bias,) = draw(seed + 1, tuple(1 if one else n for one, n in zip(bias, (H, T, S), strict=True)))
    options = {"dropout_rate": rate, "dropout_key": jax.random.key(seed) if rate else None}

    mask_array = None
    if mask is not None:
        mask_array = mask.with_heads().array(T, S) if isinstance(mask, masks.Mask) else mask
    factors = None
    if rate:
        factors = kept_factors(batch, H, T, S, rate, options["dropout_key"])
    context, vjp = jax.vjp(
        lambda *inputs: KERNELS[kernel](*inputs[:3], mask, bias=inputs[3], **options), query, key, value, bias
    )
    *came, came_bias = vjp(gradient)
    expected = oracle.attend(query, key, value, mask_array, bias=bias, factors=factors)[0]
    *expected_gradients, of_scores = oracle.gradients(
        query, key, value, gradient, mask_array, bias=bias, factors=factors
    )
    # float32 rounds a score of size s by s · 6e-8, and so its exponential.
    tolerance = 4e-6 * max(1, size)
    assert context.shape == expected.shape
    assert relative_error(context, expected) < tolerance
    # A softmax that picks one key alone has gradients that cancel to nothing; so all are compared with the largest.
    scale = max(np.abs(array).max(initial=0) for array in (*expected_gradients, gradient))
    for array, array64 in zip(came, expected_gradients, strict=True):
        assert np.abs(np.asarray(array, np.float64) - array64).max(initial=0) < tolerance * max(scale, 1)
    if bias is not None:
        axes = tuple(range(len(batch))) + tuple(len(batch) + i for i in range(3) if bias.shape[i] == 1)
        error = np.abs(came_bias - of_scores.sum(axes).reshape(bias.shape)).max()
        assert error < tolerance * max(np.abs(of_scores).sum(axes).max(), scale)


@pytest.mark.slow
@pytest.mark.parametrize("mask", benchmark.MASKS)
@pytest.mark.parametrize("keys", [None, 40])
def test_what_the_benchmark_times_equals_float64(attend, mask, keys):
    case = benchmark.Case(mask, B=2, T=24, H=3, D=4, window=5, keys=keys)
    query, key, value, _ = benchmark.random_heads(case)
    made = benchmark.make_mask(case)
    array = None if made is None else made.array(case.T, case.S)
    assert relative_error(attend(query, key, value, made), oracle.attend(query, key, value, array)[0]) < 4e-6


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_sums_in_float32(attend, dtype):
    query, key, value, gradient = draw(0, *[(2, 70, 2, 8)] * 4, dtype=dtype)
    context, vjp = jax.vjp(lambda *inputs: attend(*inputs, masks.Causal()), query, key, value)
    mask_array = masks.Causal().array(70, 70)
    assert context.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    expected = oracle.attend(query, key, value, mask_array)[0]
    assert relative_error(context, expected) < eps
    # Nothing is rounded before the end, so that nearly all entries are float64's, rounded once.
    assert (context == jnp.asarray(expected, dtype)).mean() > 0.99
    for came, expected in zip(vjp(gradient), oracle.gradients(query, key, value, gradient, mask_array), strict=False):
        assert came.dtype == dtype
        assert relative_error(came, expected) < eps


@pytest.mark.parametrize("kernel", sorted({"blockwise", "native"} & {*KERNELS}))
def test_results_for_some_of_the_keys_are_not_rounded_before_they_are_merged(kernel):
    query, key, value, gradient = draw(0, *[(2, 40, 2, 8)] * 4, dtype=jnp.bfloat16)
    one = dataclasses.replace(checked_call(query, key, value, masks.Causal()), is_partial=True)
    context, lse = jax.jit(transforms.KERNELS[kernel].forward)(one)
    gradients = jax.jit(transforms.KERNELS[kernel].backward)(one, context, lse, gradient)
    mask_array = masks.Causal().array(40, 40)
    expected = (
        oracle.attend(query, key, value, mask_array)[0],
        *oracle.gradients(query, key, value, gradient, mask_array),
    )
    for came, right in zip((context, *gradients[:3]), expected, strict=False):
        assert came.dtype == jnp.float32
        assert relative_error(came, right) < 4e-6


@pytest.mark.parametrize("kernel", sorted(set(KERNELS) - {"native"}))
def test_float64_is_kept(kernel):
    attend = KERNELS[kernel]
    with jax.enable_x64(True):
        query, key, value = draw(0, *[(2, 70, 2, 8)] * 3, dtype=jnp.float64)
        assert relative_error(attend(query, key, value), oracle.attend(query, key, value)[0]) < 1e-14


@pytest.mark.slow
def test_no_output_depends_on_a_later_input(attend):
    (x,) = draw(0, (70, 2, 4))
    for mask in (
        masks.Causal(),
        masks.SlidingWindow(20),
        masks.Causal() & masks.Chunked(25),
        masks.Causal() & masks.Segments(jnp.arange(70) // 30),
    ):
        assert_causal(lambda x, mask=mask: attend(x, x, x, mask), x, axis=0)
    with pytest.raises(AssertionError, match="depends on the later input"):
        assert_causal(lambda x: attend(x, x, x), x, axis=0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_an_outputs_bits_depend_on_what_its_query_attends_to_alone(attend, dtype):
    query, key, value = draw_heads(0, T=70, S=70, H=2, K=1, dtype=dtype)
    mask = masks.Causal() & masks.Segments(jnp.arange(70) // 40)
    run = jax.jit(lambda query, key, value: attend(query, key, value, mask))
    expected = run(query, key, value)
    huge = 1e30 if dtype != jnp.float16 else 1e4
    for size in (0.0, 3.0, huge, -huge):
        for t in (1, 31, 39, 69):
            # Later tokens of the first example, and the whole of the second.
            changes = [array.at[0, t:].multiply(size).at[1].multiply(size) for array in (query, key, value)]
            np.testing.assert_array_equal(run(*changes)[0, :t], expected[0, :t])
    other_segment = [array.at[:, :40].multiply(size) for array in (query, key, value)]
    np.testing.assert_array_equal(run(*other_segment)[:, 40:], expected[:, 40:])


def test_a_scale_that_is_an_array_has_a_gradient(attend):
    query, key, value = draw(0, *[(1, 40, 2, 4)] * 3)
    loss = lambda f, scale: (f(query, key, value, masks.Causal(), scale=scale) ** 2).sum()  # noqa: E731
    came, expected = (jax.grad(lambda scale, f=f: loss(f, scale))(0.7) for f in (attend, KERNELS["dense"]))
    chex.assert_trees_all_close(came, expected, rtol=1e-4)
    chex.assert_trees_all_close(loss(attend, 0.7), loss(KERNELS["dense"], 0.7), rtol=1e-5)


@pytest.mark.parametrize(
    "kind",
    [
        *("none", "offsets", "lengths", "per head"),
        *and_slowly("causal", "window", "sinks", "segments", "scattered", "array", *POSITION_MASKS),
    ],
)
def test_vmap_makes_more_examples_with_equal_results(attend, kind):
    query, key, value = draw(0, *[(3, 2, 50, 2, 4)] * 3)
    (bias,) = draw(1, (2, 50, 50))
    mask = draw_mask(kind, (3, 2), 50, 50, 2, 0)
    # The arrays of a mask are mapped, its plain numbers are not.
    mapped = None if kind in ("none", "array") else jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, mask)
    if kind in ("scattered", "sinks"):
        mask, mapped = draw_mask(kind, (2,), 50, 50, 2, 0), None

    def loss(attention, bias, key):
        one = lambda q, k, v, mask: attention(q, k, v, mask, bias=bias)  # noqa: E731
        return (jax.vmap(one, (0, None, 0, mapped))(query, key[0], value, mask) ** 2).sum()

    came, expected = (
        jax.jit(jax.value_and_grad(lambda bias, key, f=f: loss(f, bias, key), (0, 1)))(bias, key)
        for f in (attend, KERNELS["dense"])
    )
    chex.assert_trees_all_close(came, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_nested_vmap_equals_the_batch_whatever_is_mapped(attend):
    query, key, value, gradient = draw(0, (3, 2, 50, 2, 4), (2, 50, 1, 4), (3, 50, 1, 4), (3, 2, 50, 2, 4))
    bias, mask = draw(1, (2, 50, 50))[0], masks.Causal()

    def one(query, key, value, bias, gradient):
        context, vjp = jax.vjp(lambda *arrays: attend(*arrays[:3], mask, bias=arrays[3]), query, key, value, bias)
        return context, *vjp(gradient)

    inner = jax.vmap(one, (0, 0, None, None, 0))  # over the second axis
    mapped = jax.jit(jax.vmap(inner, (0, None, 0, None, 0)))(query, key, value, bias, gradient)
    wide = [jnp.broadcast_to(key[None], (3, 2, 50, 1, 4)), jnp.broadcast_to(value[:, None], (3, 2, 50, 1, 4))]
    wide_bias = jnp.broadcast_to(bias, (3, 2, 2, 50, 50))
    expected = jax.jit(one)(query, *wide, wide_bias, gradient)
    chex.assert_trees_all_close(mapped, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("axes", [(None, None, 0), (None, 0, None), (0, None, None)])
def test_gradients_are_right_where_one_array_alone_is_mapped(attend, axes):
    arrays = draw_heads(0, (), T=50, S=50, H=2, K=1)
    mapped = [
        array if axis is None else jnp.stack([array, 2 * array, -array])
        for array, axis in zip(arrays, axes, strict=True)
    ]
    gradients = jax.grad(lambda *arrays: (attend(*arrays, masks.Causal()) ** 2).sum(), (0, 1, 2))
    came = jax.vmap(gradients, axes)(*mapped)
    each = [gradients(*(a if axis is None else a[i] for a, axis in zip(mapped, axes, strict=True))) for i in range(3)]
    chex.assert_trees_all_close(came, jax.tree.map(lambda *a: jnp.stack(a), *each), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("shape", [(1, 50), *and_slowly(((2, 50, 50),), ((2, 1, 1),))], ids=str)
def test_each_mapped_example_has_its_own_gradient_of_a_bias_that_all_share(attend, shape):
    heads, (bias,) = draw_heads(0, (3,), T=50, S=50, H=2, K=1), draw(1, shape)

    def gradients(attend):
        loss = lambda bias, *heads: (attend(*heads, masks.Causal(), bias=bias) ** 2).sum()  # noqa: E731
        return jax.vmap(jax.grad(loss), (None, 0, 0, 0))(bias, *heads)

    chex.assert_trees_all_close(gradients(attend), gradients(KERNELS["dense"]), atol=2e-5)


def test_mapping_the_gradient_alone_gives_one_gradient_each(attend):
    query, key, value = draw_heads(0, (), T=50, S=50, H=2, K=1)
    (gradients,) = draw(1, (3, 50, 2, 8))
    context, vjp = jax.vjp(lambda *arrays: attend(*arrays, masks.Causal()), query, key, value)
    each = [vjp(gradient) for gradient in gradients]
    chex.assert_trees_all_close(jax.vmap(vjp)(gradients), jax.tree.map(lambda *a: jnp.stack(a), *each), atol=2e-5)
    assert context.shape == (50, 2, 8)


def test_vmap_drops_other_entries_for_each_key(attend):
    query, key, value = draw(0, *[(50, 2, 4)] * 3)
    keys = jax.random.split(jax.random.key(0), 3)
    run = lambda f: jax.vmap(lambda k: f(query, key, value, dropout_rate=0.5, dropout_key=k))(keys)  # noqa: E731
    chex.assert_trees_all_close(run(attend), run(KERNELS["dense"]), atol=1e-5)


def test_every_kernel_keeps_the_entries_that_dense_keeps_and_scales_them_by_one_over_one_minus_rate(attend):
    (B, T, S, H), rate, key = (2, 40, 70, 4), 0.3, jax.random.key(3)
    query, keys = jnp.zeros((B, T, H, 4)), jnp.zeros((B, S, 2, 4))
    identity = jnp.broadcast_to(jnp.eye(S)[:, None], (B, S, 2, S))
    kept = attend(query, keys, identity, masks.Causal(S - T), dropout_rate=rate, dropout_key=key)
    before = np.tri(T, S, S - T) / (np.arange(T)[:, None] + S - T + 1)  # uniform over the keys that are not masked
    factors = kept_factors((B,), H, T, S, rate, key)
    assert abs((factors > 0).mean() - 0.7) < 0.02
    np.testing.assert_allclose(np.swapaxes(kept, 1, 2), factors * before, atol=1e-6)


def test_fully_masked_rows_are_zero_with_zero_gradients(attend):
    query, key, value = draw(0, *[(1, 70, 2, 4)] * 3)
    mask = jnp.ones((70, 70), bool).at[40:].set(False)
    gradient = jax.grad(lambda q: (attend(q, key, value, mask) ** 2).sum())(query)
    assert (attend(query, key, value, mask)[:, 40:] == 0).all()
    assert (gradient[:, 40:] == 0).all()
    assert (gradient[:, :40] != 0).any()


@pytest.mark.parametrize("size", [1.0, 1e4, 1e18])
def test_large_scores_do_not_overflow(attend, size):
    query, key, value = draw(0, *[(1, 70, 2, 4)] * 3)
    context, vjp = jax.vjp(lambda *inputs: attend(*inputs, masks.Causal()), query * size, key * size, value)
    chex.assert_tree_all_finite((context, vjp(context)))
    chex.assert_trees_all_close(context, KERNELS["dense"](query * size, key * size, value, masks.Causal()), atol=1e-2)


def test_the_bias_of_padding_weighs_nothing(attend):
    query, key, value = draw(0, *[(1, 17, 2, 4)] * 3)
    for size in (80.0, 89.0, 1000.0):
        bias = jnp.zeros((17, 17)).at[-1].set(size)
        gradients = [
            jax.grad(lambda key, f=f, bias=bias: (f(query, key, value, bias=bias) ** 2).sum())(key)
            for f in (attend, KERNELS["dense"])
        ]
        chex.assert_trees_all_close(*gradients, atol=1e-4)


def test_huge_scores_have_bounded_gradients(attend):
    query, key, value = draw(0, *[(1, 17, 2, 4)] * 3)
    for size in (3e2, 3e4, 1e8):
        gradient = jax.grad(lambda v, size=size: attend(query * size, key * size, v).sum())(value)
        # Each column of the weights sums to at most the number of queries.
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() <= 17 * 1.001


@pytest.mark.parametrize("size", [1e18, 1e-20])
def test_large_and_small_values_survive_large_scores(attend, size):
    query, key = (jnp.full((1, 100, 1, 1), n) for n in (6.0, 7.0))
    value = jnp.full((1, 100, 1, 1), size)
    for sign in (1, -1):
        came = attend(query, sign * key, value, scale=1.0)
        np.testing.assert_allclose(came, np.full((1, 100, 1, 1), size), rtol=1e-5)


def test_a_bias_of_minus_infinity_masks(attend):
    query, key, value = draw(0, *[(1, 70, 2, 4)] * 3)
    mask_array = jnp.tril(jnp.ones((70, 70), bool))
    came = attend(query, key, value, bias=jnp.where(mask_array, 0.0, -jnp.inf))
    assert relative_error(came, oracle.attend(query, key, value, mask_array)[0]) < 4e-6


def test_a_nan_key_reaches_only_the_queries_that_attend_to_it(attend):
    query, key, value = draw(0, *[(1, 70, 2, 4)] * 3)
    context = attend(query, key.at[0, 50].set(jnp.nan), value, masks.Causal())
    assert np.isfinite(context[0, :50]).all()
    assert np.isnan(context[0, 50:]).all()


@pytest.mark.slow
def test_checkpointing_gives_the_same_gradients(attend):
    (x,) = draw(0, (40, 1, 2))
    loss = lambda x: (attend(x, x, x) ** 2).sum()  # noqa: E731
    chex.assert_trees_all_close(jax.grad(jax.checkpoint(loss))(x), jax.grad(loss)(x))
