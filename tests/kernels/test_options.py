"""Soft cap, sinks, biases by position and the logsumexp, alone and together, in every kernel."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import KERNELS, MASKS, POSITION_MASKS, and_slowly, draw, draw_heads, draw_mask, patched, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxattn import assert_causal, biases, dot_product_attention, explain_implementation, masks
from jaxattn.kernels import blocks, choice, few_queries, small


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    with patched(
        (blocks, "SIDE", 32),
        (blocks, "SCORES_CPU", 2048),
        (choice, "FEW_SCORES_PER_HEAD", 0),
        (small, "FEW_SCORES_IN_ALL", 2**30),
        (few_queries, "MANY_KEYS", 128),
        (few_queries, "BLOCK_CPU", 1),
    ):
        yield


@pytest.fixture(params=KERNELS)
def attend(request):
    return KERNELS[request.param]


BIASES = {
    None: lambda parameters, offset: None,
    "alibi": lambda parameters, offset: biases.Alibi(parameters[0] / 10, offset),
    "t5": lambda parameters, offset: biases.Relative(parameters, False, 40, offset),
    "t5 encoder": lambda parameters, offset: biases.Relative(parameters, True, 40, offset),
    "array": lambda parameters, offset: parameters[0][:, None, None],
}


def check(kernel, batch, T, S, K, group, kind, bias, soft_cap, with_sinks, rate, size, seed):
    """Compare context, lse and the gradients of everything with float64."""
    H = K * group
    shapes = (*batch, T, H, 4), (*batch, S, K, 4), (*batch, S, K, 3), (8, H), (H,), (*batch, T, H, 3), (*batch, H, T)
    query, key, value, parameters, sinks, gradient, of_lse = draw(seed, *shapes)
    query, sinks = query * size, sinks if with_sinks else None
    offset = S - T if seed % 2 else jnp.asarray(np.random.default_rng(seed).integers(-3, S + 1, batch))
    mask = draw_mask(kind, batch, T, S, H, seed)
    options = {"soft_cap": soft_cap, "dropout_rate": rate, "dropout_key": jax.random.key(seed) if rate else None}

    def run(query, key, value, sinks, parameters):
        made = BIASES[bias](parameters, offset)
        return KERNELS[kernel](query, key, value, mask, bias=made, sinks=sinks, return_lse=True, **options)

    (context, lse), vjp = jax.vjp(run, query, key, value, sinks, parameters)
    # Queries that may attend to nothing have an lse of -inf, and its gradient, NaN in a merge, moves nothing.
    came = vjp((gradient, jnp.where(jnp.isneginf(lse), jnp.nan, of_lse)))

    array = mask.with_heads().array(T, S) if isinstance(mask, masks.Mask) else mask
    made, entries_vjp = jax.vjp(lambda p: entries_of(BIASES[bias](p, offset), batch, H, T, S), parameters)
    factors = oracle.dropout_factors((*batch, H, T, S), rate, options["dropout_key"]) if rate else None
    given = {"bias": made, "factors": factors, "soft_cap": soft_cap, "sinks": sinks}
    expected, _, expected_lse = oracle.attend_with_lse(query, key, value, array, **given)
    *right, of_logits = oracle.gradients(query, key, value, gradient, array, of_lse=of_lse, **given)[:4]
    right.append(
        oracle.gradients(query, key, value, gradient, array, of_lse=of_lse, **given)[4] if with_sinks else None
    )
    right.append(None if bias is None else entries_vjp(jnp.asarray(of_logits, jnp.float32))[0])

    tolerance = 4e-6 * max(1, size)
    assert relative_error(context, expected) < tolerance
    nothing = np.isneginf(expected_lse)
    np.testing.assert_array_equal(np.isneginf(lse), nothing)
    spread = max(1, np.abs(expected_lse[~nothing]).max(initial=0))
    assert np.abs(np.where(nothing, 0, lse) - np.where(nothing, 0, expected_lse)).max() < tolerance * spread
    scale = max([1, *(np.abs(x).max(initial=0) for x in (*right[:3], gradient))], default=1)
    for one, one64 in zip(came[:3], right[:3], strict=True):
        assert np.abs(np.asarray(one, np.float64) - one64).max(initial=0) < tolerance * scale
    for one, one64 in zip(came[3:], right[3:], strict=True):
        if one64 is not None:
            # Sums over all queries, and distances as large as the number of tokens.
            bound = max(scale, np.abs(of_logits).sum() * (S + T if bias == "alibi" else 1) / 10)
            assert np.abs(np.asarray(one, np.float64) - np.asarray(one64)).max() < tolerance * bound


def entries_of(bias, batch, H, T, S):
    if bias is None:
        return jnp.zeros((*batch, H, T, S))
    array = bias.array(T, S) if isinstance(bias, biases.Bias) else bias
    return jnp.broadcast_to(array, (*batch, H, T, S))


CASES = {
    "batch": st.sampled_from([(), (1,), (2,)]),
    "K": st.integers(1, 2),
    "group": st.integers(1, 3),
    "kind": st.sampled_from([*MASKS, *POSITION_MASKS]),
    "bias": st.sampled_from(list(BIASES)),
    "soft_cap": st.sampled_from([None, 0.7, 30.0]),
    "with_sinks": st.booleans(),
    "rate": st.sampled_from([0.0, 0.3]),
    "size": st.sampled_from([0.1, 1.0, 30.0]),
    "seed": st.integers(0, 2**31 - 1),
}


@given(kernel=st.sampled_from([*KERNELS]), T=st.integers(1, 130), S=st.integers(1, 130), **CASES)
def test_any_options_together_equal_float64(kernel, T, S, **case):
    check(kernel, T=T, S=S, **case)


@pytest.mark.slow
@given(kernel=st.sampled_from(sorted({"blockwise", "native"} & {*KERNELS})), T=st.integers(1, 2), **CASES)
def test_any_options_together_equal_float64_with_few_queries(kernel, T, **case):
    check(kernel, T=T, S=300, **case)


@pytest.mark.slow
@settings(max_examples=20)
@given(kernel=st.sampled_from([*KERNELS]), T=st.integers(1, 130), S=st.integers(1, 130), **CASES)
def test_many_options_together_equal_float64(kernel, T, S, **case):
    check(kernel, T=T, S=S, **case)


PAIRS = sorted(
    {
        frozenset((one, other))
        for one, other in itertools.combinations(("soft_cap", "sinks", "alibi", "t5", "dropout", *POSITION_MASKS), 2)
        if {one, other} != {"alibi", "t5"} and len({one, other} & {*POSITION_MASKS}) < 2
    },
    key=sorted,
)


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: " and ".join(sorted(pair)))
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("T", "S"), [(70, 90), (1, 300)])
def test_every_pair_of_options_equals_float64(kernel, pair, T, S):
    check(
        kernel, (2,), T, S, K=2, group=2,
        kind=next((mask for mask in POSITION_MASKS if mask in pair), "causal"),
        bias=next((bias for bias in ("alibi", "t5") if bias in pair), None),
        soft_cap=1.5 if "soft_cap" in pair else None,
        with_sinks="sinks" in pair,
        rate=0.3 if "dropout" in pair else 0.0,
        size=1.0,
        seed=T,
    )  # fmt: skip


OPTIONS = {"soft_cap": 3.0, "sinks": jnp.array([0.5, -1.0]), "bias": biases.Alibi(jnp.array([0.1, 0.3]), 2)}


def test_no_output_depends_on_a_later_input(attend):
    (x,) = draw(0, (70, 2, 4))
    options = {**OPTIONS, "bias": biases.Alibi(jnp.array([0.1, 0.3]))}
    assert_causal(lambda x: attend(x, x, x, masks.Causal(), return_lse=True, **options)[0], x, axis=0)


@pytest.mark.slow
def test_contexts_of_two_sets_of_keys_combine_by_their_logsumexp(attend):
    query, key, value = draw_heads(0, T=20, S=60, H=2, K=1)
    mask = masks.Causal(-10)  # the first queries attend to nothing, and many to the first set alone
    options = {"soft_cap": 3.0, "return_lse": True}

    def whole(query, key, value, sinks):
        return attend(query, key, value, mask, sinks=sinks, **options)

    def merged(query, key, value, sinks):
        first = attend(query, key[:, :25], value[:, :25], mask, sinks=sinks, **options)
        second = attend(query, key[:, 25:], value[:, 25:], mask.shifted(-25), **options)
        lse = jnp.stack([first[1], second[1]])
        shares = jnp.swapaxes(jax.nn.softmax(lse, axis=0), -1, -2)[..., None]
        return first[0] * shares[0] + second[0] * shares[1], jax.nn.logsumexp(lse, axis=0)

    arrays = query, key, value, OPTIONS["sinks"]
    chex.assert_trees_all_close(merged(*arrays), whole(*arrays), atol=1e-5)
    loss = lambda f: lambda *arrays: sum(jnp.sin(result).sum() for result in f(*arrays))  # noqa: E731
    came, expected = (jax.grad(loss(f), (0, 1, 2, 3))(*arrays) for f in (merged, whole))
    chex.assert_trees_all_close(came, expected, atol=2e-5, rtol=1e-5)


def test_results_come_in_one_order():
    query, key, value = draw_heads(0, H=2, K=2)
    context, weights, lse = dot_product_attention(query, key, value, return_weights=True, return_lse=True, **OPTIONS)
    again, other_lse = dot_product_attention(query, key, value, return_lse=True, **OPTIONS)
    chex.assert_trees_all_close((context, lse), (again, other_lse), atol=1e-6)
    assert (context.shape, weights.shape, lse.shape) == ((2, 5, 2, 8), (2, 2, 5, 7), (2, 2, 5))
    # Sinks take their share.
    sink_weights = jnp.exp(OPTIONS["sinks"][None, :, None] - lse)
    np.testing.assert_allclose(weights.sum(-1) + sink_weights, 1, rtol=1e-5)


def test_queries_that_attend_to_nothing_get_zero_beside_a_sink(attend):
    query, key, value = draw_heads(0, H=2, K=2)
    mask = jnp.ones((5, 7), bool).at[2].set(False)
    for sinks, lse_there in ((OPTIONS["sinks"], OPTIONS["sinks"]), (None, jnp.full(2, -jnp.inf))):
        run = lambda *heads, sinks=sinks: attend(*heads, mask, sinks=sinks, return_lse=True)  # noqa: E731
        (context, lse), vjp = jax.vjp(run, query, key, value)
        assert (context[:, 2] == 0).all()
        np.testing.assert_allclose(lse[:, :, 2], jnp.broadcast_to(lse_there, (2, 2)), rtol=1e-6)
        # Nothing moves an lse of -inf, whatever its gradient.
        chex.assert_tree_all_finite(vjp((context, jnp.where(jnp.isneginf(lse), jnp.nan, 1.0))))


@pytest.mark.parametrize("scale", [-0.5, *and_slowly(0.7)])
def test_the_logsumexp_without_other_options_equals_float64(attend, scale):
    query, key, value = draw_heads(0, T=40, S=50, H=4, K=2)
    lse = attend(query, key, value, masks.Causal(10), scale=scale, return_lse=True)[1]
    allowed = np.arange(50) <= np.arange(40)[:, None] + 10
    np.testing.assert_allclose(lse, oracle.attend_with_lse(query, key, value, allowed, scale=scale)[2], atol=4e-6)


def test_no_masked_score_changes_the_logsumexp_however_large_it_is(attend):
    query, key, value = draw_heads(0, H=2, K=2)
    mask = jnp.broadcast_to(jnp.arange(7) < 4, (5, 7))
    came = attend(query, key.at[:, 4:].multiply(1e6), value, mask, return_lse=True)
    expected = attend(query, key[:, :4], value[:, :4], return_lse=True)
    chex.assert_trees_all_close(came, expected, atol=1e-6)


def test_a_sink_of_minus_infinity_is_none(attend):
    query, key, value = draw_heads(0, H=2, K=2)
    came = attend(query, key, value, masks.Causal(-2), sinks=jnp.full(2, -jnp.inf), return_lse=True)
    chex.assert_trees_all_close(came, attend(query, key, value, masks.Causal(-2), return_lse=True), atol=1e-6)


@pytest.mark.parametrize("size", [1e4, pytest.param(1e18, marks=pytest.mark.slow)])
def test_large_scores_and_sinks_do_not_overflow(attend, size):
    query, key, value = draw(0, *[(1, 70, 2, 4)] * 3)
    for sinks in (jnp.array([size, -size]), jnp.array([0.0, 100.0])):
        for cap in (None, 50.0):
            run = lambda *args, f=attend, cap=cap: f(*args[:3], masks.Causal(), sinks=args[3], soft_cap=cap)  # noqa: E731
            context, vjp = jax.vjp(run, query * size, key * size, value, sinks)
            chex.assert_tree_all_finite((context, vjp(context)))
            expected = run(query * size, key * size, value, sinks, f=KERNELS["dense"])
            chex.assert_trees_all_close(context, expected, atol=1e-2)


def test_vmap_makes_more_examples_with_equal_results(attend):
    query, key, value = draw(0, *[(3, 2, 50, 2, 4)] * 3)
    slopes, sinks = draw(1, (2,), (3, 2))
    offset = jnp.arange(6).reshape(3, 2)

    def loss(attention, slopes, sinks, key):
        def one(query, key, value, sinks, offset):
            bias = biases.Alibi(slopes, offset)
            mask = masks.SlidingWindow(20, offset, right=5)
            return attention(query, key, value, mask, bias=bias, sinks=sinks, soft_cap=2.0, return_lse=True)

        context, lse = jax.vmap(one, (0, None, 0, 0, 0))(query, key[0], value, sinks, offset)
        return (context**2).sum() + jnp.sin(lse).sum()

    came, expected = (
        jax.jit(jax.value_and_grad(lambda *arrays, f=f: loss(f, *arrays), (0, 1, 2)))(slopes, sinks, key)
        for f in (attend, KERNELS["dense"])
    )
    chex.assert_trees_all_close(came, expected, rtol=2e-5, atol=1e-4)


def loss_of_options(attend, query, sinks, slopes, table, added):
    """Everything that has a derivative: context and logsumexp of two calls, with a bias by position and an array."""
    heads, mask = (query, query, query), masks.SlidingWindow(4, right=1)
    first, lse = attend(*heads, mask, bias=biases.Alibi(slopes), sinks=sinks, soft_cap=0.9, return_lse=True)
    second = attend(*heads, mask, bias=biases.Relative(table, max_distance=3), soft_cap=0.9)
    return jnp.sin(first).sum() + jnp.cos(lse).sum() + (second * attend(*heads, mask, bias=added)).sum()


SECOND = {"query": (6, 2, 4), "sinks": (2,), "slopes": (2,), "table": (4, 2), "added": (2, 6, 6)}


@pytest.mark.slow
@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives_of_every_option_come_from_dense_and_are_named_elsewhere(attend, name):
    arrays = dict(zip(SECOND, draw(3, *SECOND.values()), strict=True))
    (direction,) = draw(4, SECOND[name])

    def slope(array, function=attend):
        return jax.grad(lambda array: loss_of_options(function, **arrays | {name: array}))(array)

    if attend is not KERNELS["dense"]:
        with pytest.raises(TypeError, match=r"second ones.*implementation='dense'"):
            jax.grad(lambda array: (slope(array) * direction).sum())(arrays[name])
        return
    came = jax.grad(lambda array: (slope(array) * direction).sum())(arrays[name])
    with jax.enable_x64(True):
        arrays = {key: jnp.asarray(np.asarray(array), jnp.float64) for key, array in arrays.items()}
        far, near = (slope(arrays[name] + step * np.asarray(direction, np.float64)) for step in (1e-5, -1e-5))
        expected = (far - near) / 2e-5
    np.testing.assert_allclose(came, expected, atol=2e-5 * max(1, np.abs(expected).max()))


def test_half_precision_keeps_its_type(attend):
    query, key, value = draw_heads(0, T=40, S=40, H=2, K=1, dtype=jnp.bfloat16)
    context, lse = attend(query, key, value, masks.Causal(), return_lse=True, **OPTIONS)
    bias = OPTIONS["bias"].array(40, 40)
    array = masks.Causal().array(40, 40)
    given = {"bias": bias, "soft_cap": 3.0, "sinks": OPTIONS["sinks"]}
    expected, _, expected_lse = oracle.attend_with_lse(query, key, value, array, **given)
    assert (context.dtype, lse.dtype) == (jnp.bfloat16, jnp.float32)
    assert relative_error(context, expected) < float(jnp.finfo(jnp.bfloat16).eps)
    assert relative_error(lse, expected_lse) < 1e-5


def test_no_array_of_all_entries_is_made_for_a_bias_by_position():
    query, key, value = draw(0, *[(600, 2, 4)] * 3)
    run = lambda q, k, v: KERNELS["blockwise"](q, k, v, masks.Causal(), **OPTIONS).sum()  # noqa: E731
    assert "600,600" not in str(jax.make_jaxpr(jax.grad(run, (0, 1, 2)))(query, key, value))


def test_the_kernel_that_runs_is_the_one_without_the_options():
    heads = jnp.ones((1, 2048, 2, 64))
    plain = explain_implementation(heads, heads, heads, masks.Causal()).splitlines()[0]
    for mask in (masks.Causal(), masks.Chunked(300) & masks.Causal(), masks.Causal() | masks.Prefix(7)):
        with_options = explain_implementation(heads, heads, heads, mask, return_lse=True, **OPTIONS)
        assert with_options.splitlines()[0] == plain
