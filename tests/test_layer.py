"""The grown layer: at its defaults stage 4, with options float64 written out."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import layer_oracle
import numpy as np
import pytest
from cases import draw, kept_factors
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxattn import AttentionLayer, MultiHeadAttention, RelativeBias, assert_causal, masks
from jaxattn.layer import checked_lengths
from jaxattn.layer.decoding import decoding_mask, masked_missing
from jaxattn.nnx import MultiHeadAttention as NNXMultiHeadAttention
from jaxattn.rotary import rotate


def test_at_its_defaults_it_is_stage_4():
    (x,) = draw(0, (2, 7, 6))
    stage, layer = MultiHeadAttention(2, 8, 0.1), AttentionLayer(2, 8, 0.1)
    variables = stage.init(jax.random.key(0), x)
    chex.assert_trees_all_equal_shapes(variables, layer.init(jax.random.key(0), x))
    for options in ({}, {"deterministic": False, "dropout_key": jax.random.key(1)}, {"return_weights": True}):
        chex.assert_trees_all_equal(stage.apply(variables, x, **options), layer.apply(variables, x, **options))


CALLS = given(
    batch=st.sampled_from([(), (2,), (2, 3)]),
    T=st.integers(1, 9),
    K=st.sampled_from([1, 2, 4]),
    base=st.sampled_from([None, 100.0]),
    given_positions=st.booleans(),
    normalize=st.booleans(),
    use_bias=st.booleans(),
    mask=st.sampled_from(["causal", "window", "none", "segments"]),
    steps=st.sampled_from([None, 1, 2, 3]),
    rate=st.sampled_from([0.0, 0.3]),
    dtype=st.sampled_from([None, None, jnp.bfloat16]),
    implementation=st.sampled_from([None, "dense", "blockwise"]),
    seed=st.integers(0, 2**31 - 1),
)


def check_call(batch, T, K, base, given_positions, normalize, use_bias, mask, steps, rate, dtype, implementation, seed):
    (x,) = draw(seed, (*batch, T, 6))
    rng = np.random.default_rng(seed)
    always = {"causal": masks.Causal(), "window": masks.SlidingWindow(2), "none": None, "segments": masks.Causal()}[
        mask
    ]
    if steps is not None and mask in ("none", "segments"):
        always, mask = masks.Causal(), "causal"
    layer = AttentionLayer(4, 16, rate, use_bias, K, always, base, normalize, 12, dtype, implementation=implementation)
    variables = jax.jit(layer.init)(jax.random.key(seed % 1000), x)
    params = jax.tree.map(lambda leaf: leaf + 0.1, variables["params"])  # biases are zero at first
    variables = {"params": params}
    extra, allowed = None, None
    if mask == "segments":
        ids = jnp.asarray(np.sort(rng.integers(0, 3, (*batch, T)), -1))
        extra = masks.Segments(ids)
        allowed = np.asarray(extra.array(T, T))
        allowed = allowed[..., None, :, :] if allowed.ndim > 2 else allowed
    positions, options = np.broadcast_to(np.arange(T), (*batch, T)), {}
    if base is not None and given_positions and steps is None:
        positions = rng.integers(0, 50, (*batch, T))
        options = {"positions": jnp.asarray(positions)}
    factors = None
    if rate and steps is None:
        options |= {"deterministic": False, "dropout_key": jax.random.key(seed % 1000)}
        factors = kept_factors(batch, 4, T, T, rate, options["dropout_key"])
    expected = layer_oracle.output(layer, params, x, positions=positions, allowed=allowed, factors=factors)
    if steps is None:
        came = jax.jit(lambda variables, x: layer.apply(variables, x, mask=extra, **options))(variables, x)
    else:
        rows, step = [], jax.jit(lambda variables, x: layer.apply(variables, x, decode=True, mutable=["cache"]))
        for start in range(0, T, steps):
            row, cache = step(variables, x[..., start : start + steps, :])
            variables, rows = variables | cache, [*rows, row]
        came = jnp.concatenate(rows, axis=-2)
    assert came.dtype == (dtype or jnp.float32)
    tolerance = 2e-5 if dtype is None else 16 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(came.astype(jnp.float32), expected, atol=tolerance * max(1, np.abs(expected).max()))


@settings(max_examples=3)
@CALLS
@jax.numpy_dtype_promotion("standard")  # Flax's normalisation relies on it
def test_any_call_equals_float64_written_out(**case):
    check_call(**case)


@pytest.mark.slow
@settings(max_examples=30)
@CALLS
@jax.numpy_dtype_promotion("standard")  # Flax's normalisation relies on it
def test_many_calls_equal_float64_written_out(**case):
    check_call(**case)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@jax.numpy_dtype_promotion("standard")  # Flax's normalisation relies on it
def test_types_of_computation_and_parameters(dtype):
    (x,) = draw(0, (2, 7, 6))
    layer = AttentionLayer(2, 8, rotary_base=100.0, normalize_heads=True, dtype=dtype, cache_length=8)
    variables = layer.init(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    output = layer.apply(variables, x)
    assert output.dtype == dtype
    expected = layer.clone(dtype=None).apply(variables, x)
    np.testing.assert_allclose(output.astype(jnp.float32), expected, atol=20 * float(jnp.finfo(dtype).eps))
    decoded, cache = layer.apply(variables, x, decode=True, mutable=["cache"])
    assert cache["cache"]["key"].dtype == dtype
    np.testing.assert_allclose(decoded.astype(jnp.float32), expected, atol=20 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@jax.numpy_dtype_promotion("standard")  # Flax's normalization relies on it
def test_without_a_dtype_it_computes_in_the_type_of_the_vectors(dtype):
    x, context = draw(0, (2, 7, 6), (2, 5, 3))
    x, context = x.astype(dtype), context.astype(dtype)
    stage, layer = MultiHeadAttention(2, 8), AttentionLayer(2, 8, cache_length=8)
    variables = stage.init(jax.random.key(0), x)
    chex.assert_trees_all_equal(layer.apply(variables, x), stage.apply(variables, x))
    decoded, cache = layer.apply(variables, x, decode=True, mutable=["cache"])
    assert {decoded.dtype, cache["cache"]["key"].dtype} == {jnp.dtype(dtype)}
    cross = AttentionLayer(2, 8, mask=None, normalize_heads=True)
    output, variables = cross.init_with_output(jax.random.key(0), x, context=context)
    assert output.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    kernels = {product.outvars[0].aval.dtype for product in matmuls(cross.apply, variables, x, context=context)}
    assert kernels <= {jnp.dtype(dtype), jnp.dtype("float32")}  # scores are wider


def matmuls(function, *args, **options):
    """The matrix products in the program of a function."""

    def search(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield equation
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from search(getattr(inner, "jaxpr", inner))

    return list(search(jax.make_jaxpr(functools.partial(function, **options))(*args).jaxpr))


@pytest.mark.parametrize(
    ("implementation", "options"),
    [
        ("dense", {}),
        ("blockwise", {}),
        ("dense", {"return_weights": True}),
        ("blockwise", {"decode": True, "mutable": ["cache"]}),
    ],
)
def test_every_matrix_product_has_the_precision_of_the_layer(implementation, options):
    (x,) = draw(0, (1, 130, 6))
    plain = AttentionLayer(2, 8, cache_length=130, implementation=implementation)
    variables = jax.eval_shape(plain.init, jax.random.key(0), x)
    for precision in ("highest", "high"):
        layer = plain.clone(precision=precision)
        products = matmuls(layer.apply, variables, x, **options)
        assert len(products) >= 6  # query, key, value, scores, context, out
        expected = {jax.lax.Precision(precision)}
        normalizing = {jax.lax.Precision.HIGHEST}  # the product with 1 / the sum of a row, in full precision always
        found = [set(product.params["precision"] or [None]) for product in products]
        assert found.count(expected) >= 6
        assert all(one in (expected, normalizing) for one in found)


@pytest.mark.slow
@jax.numpy_dtype_promotion("standard")
def test_64_bit_mode_and_numpys_integers_change_nothing():
    (x,) = draw(0, (2, 6, 8))
    sizes = {"num_heads": 4, "features": 8, "num_kv_heads": 2, "cache_length": 9}
    layer = AttentionLayer(**sizes, rotary_base=100.0)
    variables = layer.init(jax.random.key(0), x)
    expected = layer.apply(variables, x)
    with jax.enable_x64(True):
        same = AttentionLayer(**{name: np.int64(size) for name, size in sizes.items()}, rotary_base=100.0)
        for lengths in (None, np.array([6, 4]), np.array([6, 4], np.uint8)):
            output, cache = jax.jit(functools.partial(same.apply, decode=True, mutable=["cache"]))(
                variables, x, lengths=lengths
            )
            assert cache["cache"]["length"].dtype == jnp.int32
            assert output.dtype == jnp.float32
            np.testing.assert_allclose(output[0], expected[0], atol=1e-5)
            np.testing.assert_allclose(output[1, :4], expected[1, :4], atol=1e-5)
            output, _ = same.apply(variables | cache, x[:, :1], decode=True, mutable=["cache"])
            assert np.isfinite(output).all()


def test_cross_attention_asks_another_sequence():
    x, context = draw(0, (2, 5, 6), (2, 7, 3))
    layer = AttentionLayer(2, 8, mask=None, num_kv_heads=1)
    output, variables = layer.init_with_output(jax.random.key(0), x, context=context)
    expected = layer_oracle.output(layer, variables["params"], x, context=context)
    np.testing.assert_allclose(output, expected, atol=1e-5)
    padding = masks.Lengths(jnp.array([3, 6]))
    short = layer.apply(variables, x, context=context, mask=padding)
    expected = layer_oracle.output(layer, variables["params"], x[:1], context=context[:1, :3])
    np.testing.assert_allclose(short[:1], expected, atol=1e-5)


@pytest.mark.parametrize("rate", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_no_option_lets_the_future_in(rate):
    (x,) = draw(0, (2, 6, 4))
    for options in (
        {"num_kv_heads": 1, "rotary_base": 100.0, "normalize_heads": True},
        {"mask": masks.SlidingWindow(3), "implementation": "blockwise"},
    ):
        layer = AttentionLayer(2, 8, rate, cache_length=9, **options)
        variables = jax.jit(layer.init)(jax.random.key(0), x)
        run = functools.partial(layer.apply, deterministic=rate == 0, dropout_key=jax.random.key(1))
        assert_causal(jax.jit(functools.partial(run, variables)), x)
        _, cache = layer.apply(variables, x[:, :3], decode=True, mutable=["cache"])
        decode = functools.partial(run, variables | cache, decode=True, mutable=["cache"])
        assert_causal(jax.jit(lambda x, decode=decode: decode(x)[0]), x)
    everyone = AttentionLayer(2, 8, mask=None)
    variables = everyone.init(jax.random.key(0), x)
    with pytest.raises(AssertionError, match="depends on the later input"):
        assert_causal(functools.partial(everyone.apply, variables), x)


@pytest.mark.parametrize(
    "own",
    [
        *(None, masks.Causal(), masks.Causal(2), masks.Causal(-1), masks.SlidingWindow(3)),
        masks.Causal(np.array([1, -2])),
    ],
)
def test_decoding_masks_what_the_full_pass_masks(own):
    full = masks.Causal() if own is None else masks.Causal() & own
    full, cached = np.broadcast_to(full.array(8, 8), (2, 8, 8)), jnp.array([4, 2])
    for T in (1, 2, 3):
        came = decoding_mask(own, None, cached, T, None).array(T, 8)
        np.testing.assert_array_equal(came, np.stack([full[0, 4 : 4 + T], full[1, 2 : 2 + T]]))
        filled = decoding_mask(own, None, cached, T, cached + 1).array(T, 8)
        np.testing.assert_array_equal(filled[:, 0], came[:, 0])
        assert not filled[0, :, 5:].any()


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("axes", [(4, 5), (3, 4, 5)])  # of outputs, and of weights
def test_an_example_of_which_tokens_are_missing_is_nan(batch, axes):
    is_whole = np.arange(np.prod(batch, dtype=int)).reshape(batch) != 0
    came = masked_missing(jnp.ones((*batch, *axes)), jnp.asarray(is_whole))
    assert came.shape == (*batch, *axes)
    np.testing.assert_array_equal(jnp.isnan(came).all(range(len(batch), came.ndim)), ~is_whole)
    np.testing.assert_array_equal(jnp.isnan(came).any(range(len(batch), came.ndim)), ~is_whole)


def test_lengths_from_none_to_all_tokens_are_taken():
    assert checked_lengths([0, 5], (2, 5), True).tolist() == [0, 5]


def test_a_relative_bias_has_the_sizes_of_t5():
    assert RelativeBias() == RelativeBias(num_buckets=32, max_distance=128, bidirectional=False)


def test_rotary_scores_depend_on_distances_alone():
    query, key = draw(0, (5, 1, 8), (5, 1, 8))
    near, far = (
        jnp.einsum("thd,shd->ts", rotate(query, jnp.arange(5) + k), rotate(key, jnp.arange(5) + k)) for k in (0, 1000)
    )
    np.testing.assert_allclose(near, far, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "call", "words"),
    [
        ({"num_kv_heads": 3}, {}, "num_kv_heads=3 must divide num_heads=2"),
        ({"head_width": 0}, {}, "head_width=0 must be at least 1"),
        ({"features": 0}, {}, "features=0 must be at least 1"),
        ({"cache_length": 0}, {"decode": True, "mutable": ["cache"]}, "cache_length=0 must be at least 1"),
        ({"out_features": 0}, {}, "out_features=0 must be at least 1"),
        ({}, {"lengths": jnp.array([1, 2])}, "lengths belongs to decode=True"),
        ({"cache_length": 9}, {"lengths": jnp.array([1, 2, 3]), "decode": True}, "for each example"),
        ({"cache_length": 9}, {"lengths": jnp.array([1.0, 2.0]), "decode": True}, "an integer for each example"),
        ({"cache_length": 9}, {"lengths": [1, 6], "decode": True}, r"lengths are \[1, 6\], but there are 5 tokens"),
        ({"cache_length": 9}, {"lengths": jnp.array([-1, 5]), "decode": True}, r"lengths are \[-1, 5\]"),
        ({"mask": masks.SlidingWindow(2)}, {"context": jnp.ones((2, 3, 4))}, "mask=None"),
        ({}, {"positions": jnp.arange(5)}, "positions are used by rotary_base alone"),
        ({}, {"decode": True}, "cache_length"),
        ({"cache_length": 9}, {"decode": True}, "mutable"),
        ({"cache_length": 3}, {"decode": True, "mutable": ["cache"]}, "x has 5 tokens.*cache_length=3"),
        ({}, {"context": jnp.ones((2, 3, 4))}, "mask=None"),
        ({"mask": masks.Prefix(2) | masks.Chunked(3)}, {"context": jnp.ones((2, 3, 4))}, "mask=None"),
        ({"mask": masks.Chunked(3) & masks.Prefix(2)}, {"context": jnp.ones((2, 3, 4))}, "mask=None"),
        ({"mask": None, "position_bias": "alibi"}, {"context": jnp.ones((2, 3, 4))}, "position_bias=None"),
        ({"mask": None, "rotary_base": 10.0}, {"context": jnp.ones((2, 3, 4))}, "rotary_base=None"),
        ({"mask": None, "cache_length": 9}, {"context": jnp.ones((2, 3, 4)), "decode": True}, "exclude each other"),
        ({"rotary_base": 10.0}, {"positions": jnp.arange(4)}, r"positions has shape \(4,\)"),
        ({"features": 6, "rotary_base": 10.0}, {}, "the width 3 is odd"),
        ({"implementation": "blockwise"}, {"return_weights": True}, "implementation='blockwise'.*weights"),
        ({"position_bias": "t5"}, {}, "position_bias='t5' must be None, 'alibi' or RelativeBias"),
    ],
)
def test_bad_input_is_named(options, call, words):
    (x,) = draw(0, (2, 5, 4))
    layer = AttentionLayer(**{"num_heads": 2, "features": 8} | options)
    params = AttentionLayer(2, layer.features or 8).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=words):
        layer.apply(params, x, **call)


@pytest.mark.parametrize("path", ["query/bias", "out/bias", "key_norm/scale", "sinks", "relative_bias"])
def test_an_initializer_of_a_parameter_that_the_layer_lacks_is_named(path):
    layer = AttentionLayer(2, 8, use_out_bias=False, initializers={path: nn.initializers.ones})
    with pytest.raises(ValueError, match=rf"initializers has \['{path}'\], but the parameters of this layer are"):
        jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((3, 4)))


def test_flaxs_layer_with_the_same_weights_agrees():
    (x,) = draw(0, (2, 7, 6))
    from jaxattn.models.convert import from_linen

    theirs = nn.MultiHeadDotProductAttention(2, qkv_features=8, out_features=8, normalize_qk=True)
    variables = theirs.init(jax.random.key(0), x)
    ours = AttentionLayer(2, 8, use_bias=True, mask=None, normalize_heads=True)
    params = from_linen(variables["params"])
    chex.assert_trees_all_close(ours.apply({"params": params}, x), theirs.apply(variables, x), atol=1e-5)


HEADS = jnp.ones((2, 3, 4, 6))
ROTATED = {
    "heads has dtype int32": (TypeError, lambda: rotate(jnp.ones((3, 1, 2), int), jnp.arange(3))),
    r"heads has shape \(3, 2\), but needs at least 3 axes": (ValueError, lambda: rotate(HEADS[0, :, 0, :2], 3)),
    "positions is None, but must be an array": (TypeError, lambda: rotate(HEADS, None)),
    r"positions has shape \(5, 3\), but must hold one for each of the tokens \(2, 3\)": (
        ValueError, lambda: rotate(HEADS, jnp.zeros((5, 3), int)),
    ),
    # These would repeat the heads.
    r"positions has shape \(2, 3\), but .* tokens \(3,\)": (
        ValueError, lambda: rotate(HEADS[0], jnp.zeros((2, 3), int)),
    ),
    r"positions has shape \(7, 2, 3\)": (ValueError, lambda: rotate(HEADS, jnp.zeros((7, 2, 3), int))),
}  # fmt: skip


@pytest.mark.parametrize("words", ROTATED)
def test_heads_and_positions_that_do_not_fit_are_named(words):
    error, run = ROTATED[words]
    with pytest.raises(error, match=words):
        run()


def test_heads_of_width_zero_have_nothing_to_rotate():
    assert rotate(HEADS[..., :0], jnp.arange(3)).shape == (2, 3, 4, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"num_heads": 2.0},
        {"num_heads": "2"},
        {"features": 8 / 1},
        {"features": "8"},
        {"num_kv_heads": 1.0},
        {"head_width": 2.5},
        {"out_features": 3.0},
        {"cache_length": 2.5},
    ],
    ids=str,
)
def test_sizes_are_whole_numbers_or_named(options):
    ((name, size),) = options.items()
    x, options = jnp.ones((2, 3, 4)), {"num_heads": 2, "features": 8, "cache_length": 9} | options
    with pytest.raises(TypeError, match=f"{name} is {size!r}, but must be a whole number: write {name}=4"):
        jax.eval_shape(functools.partial(AttentionLayer(**options).init, decode=True), jax.random.key(0), x)
    with pytest.raises(TypeError, match=f"{name} is {size!r}, but must be a whole number"):
        NNXMultiHeadAttention(**options, in_features=4, rngs=nnx.Rngs(0)).init_cache(2)
