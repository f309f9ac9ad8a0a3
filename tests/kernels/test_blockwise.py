"""Blockwise attention is compared with float64 written out plainly, at block sizes that put many borders everywhere."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import attend, gradients

from jaxattn import assert_causal, dot_product_attention, dropout, explain_implementation, masks
from jaxattn.kernels import blocks

blockwise = functools.partial(dot_product_attention, implementation="blockwise")
dense = functools.partial(dot_product_attention, implementation="dense")


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Blocks of 32 tokens, so that small arrays have many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "SIDE", 32)
        patch.setattr(blocks, "SCORES_CPU", 2048)
        jax.clear_caches()
        yield
    jax.clear_caches()


def draw(seed, *shapes, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def relative_error(came, expected):
    return np.abs(np.asarray(came, np.float64) - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-30)


def make_mask(kind, batch, T, S, H, seed):
    rng = np.random.default_rng(seed)
    ids = jnp.asarray(np.sort(rng.integers(0, 4, (*batch, T)), -1))
    key_ids = jnp.asarray(np.sort(rng.integers(0, 4, (*batch, S)), -1))
    lengths = jnp.asarray(rng.integers(0, S + 1, batch))
    return {
        "none": None,
        "causal": masks.Causal(S - T),
        "offsets": masks.Causal(jnp.asarray(rng.integers(-3, S + 1, batch))),
        "window": masks.SlidingWindow(int(rng.integers(1, 40)), S - T),
        "segments": masks.Segments(ids, key_ids) & masks.Causal(S - T),
        "scattered": masks.Segments(ids[..., ::-1], key_ids) | masks.SlidingWindow(2),
        "lengths": masks.Lengths(lengths),
        "array": jnp.asarray(rng.random((T, S)) < 0.1),
        "per head": jnp.asarray(rng.random((*batch, H, T, S)) < 0.5),
    }[kind]


KINDS = ("none", "causal", "offsets", "window", "segments", "scattered", "lengths", "array", "per head")


@given(
    batch=st.sampled_from([(), (1,), (2,), (2, 3)]),
    T=st.integers(1, 130),
    S=st.integers(1, 130),
    K=st.integers(1, 3),
    group=st.integers(1, 3),
    kind=st.sampled_from(KINDS),
    bias=st.sampled_from([None, (1, 1, 1), (0, 1, 1), (1, 0, 1), (0, 0, 0)]),
    rate=st.sampled_from([0.0, 0.3]),
    size=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 2**31 - 1),
)
def test_context_and_gradients_equal_float64_written_out(batch, T, S, K, group, kind, bias, rate, size, seed):
    H = K * group
    query, key, value, gradient = draw(seed, (*batch, T, H, 4), (*batch, S, K, 4), (*batch, S, K, 3), (*batch, T, H, 3))
    query = query * size
    mask = make_mask(kind, batch, T, S, H, seed)
    if bias is not None:
        (bias,) = draw(seed + 1, tuple(1 if one else n for one, n in zip(bias, (H, T, S), strict=True)))
    options = {"dropout_rate": rate, "dropout_key": jax.random.key(seed) if rate else None}

    visible = None
    if mask is not None:
        visible = mask.with_heads().array(T, S) if isinstance(mask, masks.Mask) else mask
    factors = None
    if rate:
        # What dropout does to weights of 1, cell by cell, by the steps that are tested against their own oracle.
        factors = dropout(jnp.ones((*batch, H, T, S)), rate, options["dropout_key"])
    context, pull = jax.vjp(
        lambda *inputs: blockwise(*inputs[:3], mask, bias=inputs[3], **options), query, key, value, bias
    )
    *came, came_bias = pull(gradient)
    expected = attend(query, key, value, visible, bias=bias, factors=factors)[0]
    *pulled, of_scores = gradients(query, key, value, gradient, visible, bias=bias, factors=factors)
    # float32 rounds a score of size s by s · 6e-8, and so its exponential.
    tolerance = 4e-6 * max(1, size)
    assert context.shape == expected.shape
    assert relative_error(context, expected) < tolerance
    # A softmax that picks one key alone has gradients that cancel to nothing; so all are compared with the largest.
    scale = max(np.abs(array).max(initial=0) for array in (*pulled, gradient))
    for array, array64 in zip(came, pulled, strict=True):
        assert np.abs(np.asarray(array, np.float64) - array64).max(initial=0) < tolerance * max(scale, 1)
    if bias is not None:
        axes = tuple(range(len(batch))) + tuple(len(batch) + i for i in range(3) if bias.shape[i] == 1)
        error = np.abs(came_bias - of_scores.sum(axes).reshape(bias.shape)).max()
        assert error < tolerance * max(np.abs(of_scores).sum(axes).max(), scale)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_sums_in_float32(dtype):
    query, key, value, gradient = draw(0, *[(2, 70, 2, 8)] * 4, dtype=dtype)
    context, pull = jax.vjp(lambda *inputs: blockwise(*inputs, masks.Causal()), query, key, value)
    visible = masks.Causal().array(70, 70)
    assert context.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    assert relative_error(context, attend(query, key, value, visible)[0]) < eps
    for came, expected in zip(pull(gradient), gradients(query, key, value, gradient, visible), strict=False):
        assert came.dtype == dtype
        assert relative_error(came, expected) < eps


def test_float64_is_kept():
    with jax.enable_x64(True):
        query, key, value = draw(0, *[(2, 70, 2, 8)] * 3, dtype=jnp.float64)
        assert relative_error(blockwise(query, key, value), attend(query, key, value)[0]) < 1e-14


def test_dropped_cells_are_those_of_the_dense_one_at_every_block_size(monkeypatch):
    query, key, value = draw(0, *[(2, 100, 2, 8)] * 3)
    options = {"dropout_rate": 0.5, "dropout_key": jax.random.key(1)}
    expected = dense(query, key, value, masks.Causal(), **options)
    for side in (16, 48, 128):
        monkeypatch.setattr(blocks, "SIDE", side)
        jax.clear_caches()  # compiled with other blocks
        came = blockwise(query, key, value, masks.Causal(), **options)
        chex.assert_trees_all_close(came, expected, atol=1e-5)
    assert not np.allclose(expected, blockwise(query, key, value, masks.Causal()))


def test_no_output_depends_on_a_later_input():
    (x,) = draw(0, (70, 2, 4))
    for mask in (masks.Causal(), masks.SlidingWindow(20), masks.Causal() & masks.Segments(jnp.arange(70) // 30)):
        assert_causal(lambda x, mask=mask: blockwise(x, x, x, mask), x, axis=0)
    with pytest.raises(AssertionError, match="depends on the later input"):
        assert_causal(lambda x: blockwise(x, x, x), x, axis=0)


def test_a_scale_that_is_an_array_has_a_gradient():
    query, key, value = draw(0, *[(1, 40, 2, 4)] * 3)
    loss = lambda f, scale: (f(query, key, value, masks.Causal(), scale=scale) ** 2).sum()  # noqa: E731
    came, expected = (jax.grad(functools.partial(loss, f))(0.7) for f in (blockwise, dense))
    chex.assert_trees_all_close(came, expected, rtol=1e-4)
    chex.assert_trees_all_close(loss(blockwise, 0.7), loss(dense, 0.7), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_makes_more_examples_with_equal_results(kind):
    query, key, value = draw(0, *[(3, 2, 50, 2, 4)] * 3)
    (bias,) = draw(1, (2, 50, 50))
    mask = make_mask(kind, (3, 2), 50, 50, 2, 0)
    # The arrays of a mask are mapped, its plain numbers are not.
    mapped = None if kind in ("none", "array") else jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, mask)
    if kind == "scattered":
        mask, mapped = make_mask(kind, (2,), 50, 50, 2, 0), None

    def loss(attention, bias, key):
        one = lambda q, k, v, mask: attention(q, k, v, mask, bias=bias)  # noqa: E731
        return (jax.vmap(one, (0, None, 0, mapped))(query, key[0], value, mask) ** 2).sum()

    came, expected = (
        jax.jit(jax.value_and_grad(functools.partial(loss, f), (0, 1)))(bias, key) for f in (blockwise, dense)
    )
    chex.assert_trees_all_close(came, expected, rtol=2e-5, atol=2e-5)


def test_vmap_drops_other_cells_for_each_key():
    query, key, value = draw(0, *[(50, 2, 4)] * 3)
    keys = jax.random.split(jax.random.key(0), 3)
    run = lambda f: jax.vmap(lambda k: f(query, key, value, dropout_rate=0.5, dropout_key=k))(keys)  # noqa: E731
    chex.assert_trees_all_close(run(blockwise), run(dense), atol=1e-5)


def test_hidden_rows_are_zero_with_zero_gradients():
    query, key, value = draw(0, *[(1, 70, 2, 4)] * 3)
    mask = jnp.ones((70, 70), bool).at[40:].set(False)
    gradient = jax.grad(lambda q: (blockwise(q, key, value, mask) ** 2).sum())(query)
    assert (blockwise(query, key, value, mask)[:, 40:] == 0).all()
    assert (gradient[:, 40:] == 0).all()
    assert (gradient[:, :40] != 0).any()


@pytest.mark.parametrize("size", [1.0, 1e4, 1e18])
def test_large_scores_do_not_overflow(size):
    query, key, value = draw(0, *[(1, 70, 2, 4)] * 3)
    context, pull = jax.vjp(lambda *inputs: blockwise(*inputs, masks.Causal()), query * size, key * size, value)
    chex.assert_tree_all_finite((context, pull(context)))
    chex.assert_trees_all_close(context, dense(query * size, key * size, value, masks.Causal()), atol=1e-2)


def test_the_bias_of_padding_weighs_nothing():
    query, key, value = draw(0, *[(1, 17, 2, 4)] * 3)
    for size in (80.0, 89.0, 1000.0):
        bias = jnp.zeros((17, 17)).at[-1].set(size)
        slopes = [
            jax.grad(lambda key, f=f, bias=bias: (f(query, key, value, bias=bias) ** 2).sum())(key)
            for f in (blockwise, dense)
        ]
        chex.assert_trees_all_close(*slopes, atol=1e-4)


def test_huge_scores_have_bounded_gradients():
    query, key, value = draw(0, *[(1, 17, 2, 4)] * 3)
    for size in (3e2, 3e4, 1e8):
        slope = jax.grad(lambda v, size=size: blockwise(query * size, key * size, v).sum())(value)
        # Each column of the weights sums to at most the number of queries.
        assert np.isfinite(slope).all()
        assert np.abs(slope).max() <= 17 * 1.001


@pytest.mark.parametrize("size", [1e18, 1e-20])
def test_large_and_small_values_survive_large_scores(size):
    query, key = (jnp.full((1, 100, 1, 1), n) for n in (6.0, 7.0))
    value = jnp.full((1, 100, 1, 1), size)
    for sign in (1, -1):
        came = blockwise(query, sign * key, value, scale=1.0)
        np.testing.assert_allclose(came, np.full((1, 100, 1, 1), size), rtol=1e-5)


def test_a_bias_of_minus_infinity_hides():
    query, key, value = draw(0, *[(1, 70, 2, 4)] * 3)
    visible = jnp.tril(jnp.ones((70, 70), bool))
    came = blockwise(query, key, value, bias=jnp.where(visible, 0.0, -jnp.inf))
    assert relative_error(came, attend(query, key, value, visible)[0]) < 4e-6


def test_not_a_number_stays_where_it_is_seen():
    query, key, value = draw(0, *[(1, 70, 2, 4)] * 3)
    context = blockwise(query, key.at[0, 50].set(jnp.nan), value, masks.Causal())
    assert np.isfinite(context[0, :50]).all()
    assert np.isnan(context[0, 50:]).all()


def test_memory_grows_with_the_length_and_not_with_its_square():
    def temporary(T):
        heads = jax.ShapeDtypeStruct((1, T, 2, 8), jnp.float32)
        run = jax.jit(jax.grad(lambda q, k, v: blockwise(q, k, v, masks.Causal()).sum(), (0, 1, 2)))
        return run.lower(heads, heads, heads).compile().memory_analysis().temp_size_in_bytes

    assert temporary(4096) < 2.5 * temporary(2048) < 2048 * 2048


@pytest.mark.parametrize(
    "derive",
    [
        lambda f, x: jax.jvp(f, (x,), (x,)),
        lambda f, x: jax.hessian(lambda x: f(x).sum())(x),
        lambda f, x: jax.grad(lambda x: (jax.grad(lambda x: f(x).sum())(x) ** 2).sum())(x),
    ],
)
def test_derivatives_that_do_not_exist_say_what_to_write(derive):
    (x,) = draw(0, (40, 1, 2))
    with pytest.raises(TypeError, match="implementation='dense'"):
        derive(lambda x: blockwise(x, x, x), x)
    derive(lambda x: dense(x, x, x), x)


def test_checkpointing_gives_the_same_gradients():
    (x,) = draw(0, (40, 1, 2))
    loss = lambda x: (blockwise(x, x, x) ** 2).sum()  # noqa: E731
    chex.assert_trees_all_close(jax.grad(jax.checkpoint(loss))(x), jax.grad(loss)(x))


def test_weights_are_refused_by_the_kernel_that_does_not_store_them():
    (x,) = draw(0, (40, 1, 2))
    with pytest.raises(ValueError, match="implementation='blockwise' does not store the weights"):
        blockwise(x, x, x, return_weights=True)
    _, weights = dot_product_attention(x, x, x, return_weights=True)
    assert weights.shape == (1, 40, 40)
    assert explain_implementation(x, x, x, return_weights=True).startswith("dense runs: it alone returns the weights")
