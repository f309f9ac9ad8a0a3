"""Arguments at the edges of what is allowed: sizes of 0, precisions, scales and keys of all types."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import KERNELS, and_slowly, draw, draw_heads, relative_error
from jax import lax

from jaxattn import (
    AttentionLayer,
    attention_weights,
    biases,
    dot_product_attention,
    dropout,
    explain_implementation,
    masks,
)
from jaxattn.attention import attend
from jaxattn.kernels.call import checked_call
from jaxattn.models.sampling import Sampling

SIZES = {"B": 2, "T": 3, "S": 4, "H": 4, "K": 2, "D": 3, "D_v": 5}


@pytest.mark.parametrize("implementation", [None, *sorted(set(KERNELS) - {"small"})])
@pytest.mark.parametrize(
    "empty", [{"B": 0}, {"T": 0}, {"S": 0}, {"H": 0, "K": 0}, {"H": 0}, {"D": 0}, {"D_v": 0}, {"T": 0, "S": 0}]
)
def test_a_size_of_zero_gives_what_is_left_with_gradients(empty, implementation):
    B, T, S, H, K, D, D_v = (SIZES | empty).values()
    query, key, value = draw(0, (B, T, H, D), (B, S, K, D), (B, S, K, D_v))
    bias, lengths = jnp.zeros((T, S)), masks.Lengths(jnp.full(B, 2))
    options = {"implementation": implementation, "dropout_rate": 0.5, "dropout_key": jax.random.key(0)}

    def attend_with(query, key, value, bias):
        return dot_product_attention(query, key, value, lengths | masks.Causal(), bias=bias, **options)

    @jax.jit
    def with_gradients(*arrays):
        context, vjp = jax.vjp(attend_with, *arrays)
        return context, vjp(context)

    context, gradients = with_gradients(query, key, value, bias)
    assert context.shape == (B, T, H, D_v)
    assert [gradient.shape for gradient in gradients] == [x.shape for x in (query, key, value, bias)]
    assert "runs" in explain_implementation(query, key, value, lengths)
    if S == 0:
        assert (context == 0).all()
    if D == 0:  # all scores are 0
        np.testing.assert_allclose(
            dot_product_attention(query, key, value, implementation=implementation),
            np.broadcast_to(np.repeat(np.asarray(value).mean(1, keepdims=True), H // K, 2), context.shape),
            rtol=1e-5,
        )
    if implementation in (None, "dense"):
        _, weights = dot_product_attention(query, key, value, return_weights=True, implementation=implementation)
        assert weights.shape == (B, H, T, S)


def test_heads_of_one_feature_are_not_scaled():
    query, key, value = draw_heads(0, D=1, D_v=1)
    expected = jax.nn.dot_product_attention(query, jnp.repeat(key, 2, 2), jnp.repeat(value, 2, 2), scale=1.0)
    np.testing.assert_allclose(dot_product_attention(query, key, value), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_an_array_without_its_axes_is_named(name):
    heads = {"query": jnp.ones((3, 2, 4)), "key": jnp.ones((3, 2, 4)), "value": jnp.ones((3, 2, 4))}
    with pytest.raises(ValueError, match=rf"{name} has shape \(2, 4\)"):
        dot_product_attention(**heads | {name: jnp.ones((2, 4))})


@pytest.mark.parametrize("implementation", [None, *sorted(set(KERNELS) - {"small"})])
@pytest.mark.parametrize(
    "empty",
    [{"T": 0}, {"S": 0}, *and_slowly({"B": 0}, {"T": 0, "S": 0}, {"H": 0, "K": 0}, {"D_v": 0})],
    ids=str,
)
def test_a_size_of_zero_goes_with_biases_by_distance_sinks_and_the_logsumexp(empty, implementation):
    B, T, S, H, K, D, D_v = (SIZES | empty).values()
    query, key, value, slopes, table, sinks = draw(0, (B, T, H, D), (B, S, K, D), (B, S, K, D_v), (H,), (8, H), (H,))

    def run(bias):
        options = {"bias": bias, "sinks": sinks, "return_lse": True, "implementation": implementation}
        return dot_product_attention(query, key, value, masks.Causal(1), **options)

    for bias in (biases.Alibi(slopes), biases.Relative(table, offset=1)):
        (context, lse), vjp = jax.vjp(run, bias)
        assert (context.shape, lse.shape) == ((B, T, H, D_v), (B, H, T))
        if S == 0:
            np.testing.assert_allclose(lse, np.broadcast_to(sinks[:, None], lse.shape), rtol=1e-6)
        (gradient,) = vjp((context, lse))
        assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, bias)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_query_heads_without_kv_heads_are_refused():
    with pytest.raises(ValueError, match="4 query heads cannot share 0 KV heads"):
        dot_product_attention(jnp.ones((3, 4, 2)), jnp.ones((3, 0, 2)), jnp.ones((3, 0, 2)))
    assert dot_product_attention(*[jnp.ones((3, 0, 2))] * 3).shape == (3, 0, 2)


PRECISIONS = [
    (lax.Precision.HIGH, "[HIGH, HIGH]"),
    ("highest", "[HIGHEST, HIGHEST]"),
    ("tensorfloat32", "[HIGH, HIGH]"),
    ("fastest", "[DEFAULT, DEFAULT]"),
    ("DEFAULT", "[DEFAULT, DEFAULT]"),
    (("high", "highest"), "[HIGHEST, HIGHEST]"),  # the higher holds for both
    ((lax.Precision.HIGHEST, lax.Precision.DEFAULT), "[HIGHEST, HIGHEST]"),
    (lax.DotAlgorithmPreset.BF16_BF16_F32_X3, "num_primitive_operations = 3"),
    ("F32_F32_F32", "lhs_precision_type = f32"),
]


@pytest.mark.parametrize(("precision", "words"), PRECISIONS, ids=str)
@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
def test_every_precision_of_dot_general_reaches_every_product(precision, words, implementation):
    x = jnp.ones((2, 2))
    lax.dot_general(x, x, (((1,), (1,)), ((), ())), precision=precision)
    run = jax.jit(lambda x: attend(checked_call(x, x, x, precision=precision, implementation=implementation)))
    lowered = jax.jit(jax.grad(lambda x: run(x).sum())).lower(jnp.ones((4, 2, 4))).as_text().splitlines()
    # Scores and context, and the products of the backward pass; the softmax's own product is always exact.
    assert sum(words in line for line in lowered if "dot_general" in line) >= 5


@pytest.mark.parametrize("precision", [3, "x", (None, None), ("high",), (1, 2), np.float32, {}, ("high",) * 3], ids=str)
def test_other_precisions_are_refused_by_name(precision):
    x = jnp.ones((4, 2, 4))
    with pytest.raises(ValueError, match=r"precision=.*is not supported: write 'default'"):
        checked_call(x, x, x, precision=precision)


@pytest.mark.parametrize(
    "scale", [2, 2.0, np.float64(2), np.int8(2), np.array(2), np.array(2.0), jnp.float16(2), jnp.asarray(2)], ids=repr
)
def test_a_scale_of_any_type_is_one_number(scale):
    query, key, value = draw(0, *[(5, 2, 4)] * 3)
    expected = dot_product_attention(query, key, value, scale=2.0)
    assert relative_error(dot_product_attention(query, key, value, scale=scale), expected) < 1e-6
    scores = query[:, 0] @ key[:, 0].T
    assert relative_error(attention_weights(scores, scale=scale), attention_weights(scores, scale=2.0)) < 1e-6


@pytest.mark.parametrize("scale", ["2", 1j, jnp.ones(1), jnp.ones((), bool)], ids=repr)
def test_a_scale_that_is_no_number_is_refused_by_name(scale):
    query, key, value = draw(0, *[(5, 2, 4)] * 3)
    for call in (
        lambda: dot_product_attention(query, key, value, scale=scale),
        lambda: attention_weights(query[:, 0] @ key[:, 0].T, scale=scale),
    ):
        with pytest.raises((TypeError, ValueError), match="scale"):
            call()


def test_raw_keys_drop_as_typed_ones_do_from_numpy_too():
    x, key = jnp.ones((8, 8)), jax.random.key(3)
    raw = np.asarray(jax.random.key_data(key))
    expected = dropout(x, 0.5, key)
    for same in (raw, jnp.asarray(raw)):
        np.testing.assert_array_equal(dropout(x, 0.5, same), expected)
        np.testing.assert_array_equal(jax.jit(lambda k: dropout(x, 0.5, k))(same), expected)
    heads = jnp.ones((4, 2, 8))
    contexts = [dot_product_attention(heads, heads, heads, dropout_rate=0.5, dropout_key=k) for k in (raw, key)]
    np.testing.assert_array_equal(*contexts)


@pytest.mark.parametrize("key", [np.zeros(3, np.uint32), np.zeros((2, 2), np.uint32), np.zeros(2, np.int32), [0, 1]])
def test_what_is_no_raw_key_is_refused_by_name(key):
    with pytest.raises((TypeError, ValueError), match=r"key (is|has shape).*jax\.random"):
        dropout(jnp.ones((8, 8)), 0.5, key)


def test_numpy_numbers_are_sizes_and_rates():
    x = jnp.ones((3, 8))
    layer = AttentionLayer(np.int64(4), np.int64(8), np.float32(0), num_kv_heads=np.int32(2))
    assert layer.init_with_output(jax.random.key(0), x)[0].shape == (3, 8)
    assert masks.SlidingWindow(np.int64(2)) == masks.SlidingWindow(2)


X = jnp.ones((3, 1, 2))
ATTEND = functools.partial(dot_product_attention, X, X, X)
NO_ARRAYS = {
    "query is 'text', but must be an array": lambda: dot_product_attention("text", X, X),
    "key is None, but must be an array": lambda: dot_product_attention(X, None, X),
    "value is list, but must be an array": lambda: dot_product_attention(X, X, [[1.0], [1.0, 2.0]]),
    "mask is <class '.*Causal'>, but must be .*masks: write masks.Causal()": lambda: ATTEND(masks.Causal),
    "mask is None, but must be a boolean array": lambda: masks.Causal() & None,
    "bias is 'alibi', but must be an array": lambda: ATTEND(bias="alibi"),
    "sinks is object, but must be an array": lambda: ATTEND(sinks=object()),
    "offset is 'last', but must be an array": lambda: masks.Causal("last").array(2, 2),
    "lengths is None, but must be an array": lambda: masks.Lengths(None).array(2, 2),
    "x is None, but must be an array": lambda: AttentionLayer(1, 2).init(jax.random.key(0), None),
    "scores is None, but must be an array": lambda: attention_weights(None),
}


@pytest.mark.parametrize("words", NO_ARRAYS)
def test_what_is_no_array_is_named(words):
    with pytest.raises(TypeError, match=words):
        NO_ARRAYS[words]()


NO_NUMBERS = {
    "dropout_rate is None, but must be a number: write dropout_rate=0.1": lambda: ATTEND(dropout_rate=None),
    "dropout_rate is traced, but must be known before: .*static_argnames='dropout_rate'": lambda: jax.jit(
        lambda rate: ATTEND(dropout_rate=rate)
    )(0.1),
    "temperature is 'hot', but must be a number": lambda: Sampling.checked(5, "hot", None, None, None),
    "top_p is traced, but must be known before": lambda: jax.jit(lambda p: Sampling.checked(5, 1, None, p, None))(0.1),
}


@pytest.mark.parametrize("words", NO_NUMBERS)
def test_numbers_that_programs_depend_on_are_known_before_tracing(words):
    with pytest.raises(TypeError, match=words):
        NO_NUMBERS[words]()


def test_an_implementation_that_is_no_name_is_refused():
    with pytest.raises(ValueError, match=r"implementation=\['dense'\] is not known"):
        ATTEND(implementation=["dense"])


@pytest.mark.parametrize(
    "dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float16, jnp.bfloat16], ids=lambda t: t.dtype
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_narrow_types_are_computed_in_wide_ones(kernel, dtype):
    narrow = draw(0, (5, 2, 8), (7, 1, 8), (7, 1, 3), (5, 2, 3), dtype=dtype)

    def run(attend, query, key, value, gradient):
        context, vjp = jax.vjp(lambda *heads: attend(*heads, masks.Causal(2)), query, key, value)
        return context, *vjp(gradient)

    came = jax.jit(functools.partial(run, KERNELS[kernel]))(*narrow)
    expected = jax.jit(functools.partial(run, KERNELS["dense"]))(*[array.astype(jnp.float32) for array in narrow])
    accuracy = float(jnp.finfo(dtype).eps)
    for one, other in zip(came, expected, strict=True):
        assert one.dtype == dtype
        assert relative_error(one.astype(jnp.float32), np.asarray(other)) < 2 * accuracy
