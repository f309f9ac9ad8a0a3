"""The KV cache of the layer: with it the same numbers as without, and never those of padding or of missing tokens."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import draw
from flax import nnx

from jaxattn import GPT, AttentionLayer, GPTConfig, LatentAttention, check_room, masks, reorder_cache
from jaxattn.models.llama import Llama, LlamaConfig
from jaxattn.nnx import GPT as NNXGPT
from jaxattn.nnx import LatentAttention as NNXLatentAttention
from jaxattn.nnx import MultiHeadAttention


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
    # Negative, more than the tokens, more than the room, both.
    for cache_length, wrong in ((8, -1), (8, 4), (3, 3), (3, 5)):
        layer = AttentionLayer(2, 8, cache_length=cache_length, mask=mask)
        variables = layer.init(jax.random.key(0), x)
        step = jax.jit(functools.partial(layer.apply, decode=True, mutable=["cache"]))
        _, cache = step(variables, x[:, :2], lengths=jnp.array([0, 2]))
        _, cache = step(variables | cache, x, lengths=jnp.array([0, wrong]))
        assert cache["cache"]["length"].tolist() == [0, cache_length + 1]
        for _ in range(3):
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


def test_a_rolling_cache_takes_the_memory_of_the_window_and_never_fills():
    (x,) = draw(0, (2, 30, 4))
    options = {"mask": masks.SlidingWindow(5), "rotary_base": 100.0}
    layer, whole = AttentionLayer(2, 8, rolling_cache=True, **options), AttentionLayer(2, 8, cache_length=30, **options)
    variables = layer.init(jax.random.key(0), x)
    expected = whole.apply(variables, x)
    # Both examples go on where each ended; padding may even be NaN.
    padded = x[:, :9].at[1, 3:].set(jnp.nan)
    step = jax.jit(functools.partial(layer.apply, decode=True, mutable=["cache"]))
    prefill, cache = step(variables, padded, lengths=jnp.array([9, 3]))
    np.testing.assert_allclose(prefill[0], expected[0, :9], atol=1e-5)
    np.testing.assert_allclose(prefill[1, :3], expected[1, :3], atol=1e-5)
    for number in range(20):
        output, cache = step(variables | cache, jnp.stack([x[0, 9 + number], x[1, 3 + number]])[:, None])
        np.testing.assert_allclose(output[0, 0], expected[0, 9 + number], atol=1e-5)
        np.testing.assert_allclose(output[1, 0], expected[1, 3 + number], atol=1e-5)
    assert cache["cache"]["recent_key"].shape == (2, 4, 2, 4)
    _, cache = step(variables | cache, x[:, :2], lengths=jnp.array([1, 3]))  # more than there are
    output, _ = step(variables | cache, x[:, :1])
    assert np.isfinite(output[0]).all()
    assert np.isnan(output[1]).all()


@pytest.mark.parametrize(
    "options",
    [
        {"cache_length": 5},
        {"rolling_cache": True, "mask": masks.SlidingWindow(3)},
        {"rolling_cache": True, "mask": masks.SlidingWindow(1)},
    ],
    ids=str,
)
def test_the_cache_that_initializing_makes_is_empty(options):
    (x,) = draw(0, (2, 5, 4))
    layer = AttentionLayer(2, 8, **options)
    variables = jax.jit(functools.partial(layer.init, decode=True))(jax.random.key(0), x[:, :2])
    expected = jax.jit(layer.apply)({"params": variables["params"]}, x)
    step = jax.jit(functools.partial(layer.apply, decode=True, mutable=["cache"]))
    for token in range(5):
        output, cache = step(variables, x[:, token : token + 1])
        variables |= cache
        np.testing.assert_allclose(output[:, 0], expected[:, token], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask": None}, r"mask is None, which may need others: write mask=SlidingWindow\(size\)"),
        ({"mask": masks.Causal()}, r"mask is Causal\(offset=0\)"),
        ({"mask": masks.Causal(-1)}, r"mask is Causal\(offset=-1\)"),
        ({"mask": masks.SlidingWindow(3, right=2)}, r"right=2\), which attends to later .*mask=SlidingWindow\(3\)"),
        ({"mask": masks.SlidingWindow(3, offset=1)}, "offset=1"),
        ({"mask": masks.SlidingWindow(3, jnp.zeros(2, int))}, r"mask is SlidingWindow\(size=3, offset=Array"),
        ({"mask": masks.Chunked(3)}, r"mask is Chunked\(size=3"),
        ({"mask": masks.Causal() & masks.Chunked(3)}, "mask is And"),
        ({"mask": masks.Prefix(2)}, "mask is Prefix"),
        ({"mask": masks.SlidingWindow(3) | masks.Prefix(2)}, r"mask is Or\(first=SlidingWindow\(size=3"),
        ({"mask": masks.SlidingWindow(3) & masks.Lengths(2)}, "mask is And"),
        ({"mask": jnp.ones((5, 5), bool)}, "mask is "),
        ({"cache_length": 9}, "cache_length=9 says otherwise: leave cache_length out"),
    ],
)  # fmt: skip
def test_masks_that_a_rolling_cache_cannot_serve_are_named_at_every_call(options, words):
    (x,) = draw(0, (2, 5, 4))
    options = {"mask": masks.SlidingWindow(3), "rolling_cache": True} | options
    for call in ({}, {"decode": True, "mutable": ["cache"]}):
        with pytest.raises(ValueError, match=words):
            AttentionLayer(2, 8, **options).apply({}, x, **call)
    with pytest.raises(ValueError, match=words):
        MultiHeadAttention(2, 4, 8, **options, rngs=nnx.Rngs(0))


def test_a_mask_of_the_call_is_named_where_a_rolling_cache_drops_keys():
    (x,) = draw(0, (2, 5, 4))
    options = {"mask": masks.SlidingWindow(3), "rolling_cache": True}
    layer, theirs = AttentionLayer(2, 8, **options), MultiHeadAttention(2, 4, 8, **options, rngs=nnx.Rngs(0))
    for mask in (masks.Lengths(jnp.array([1, 2])), masks.Prefix(2), jnp.ones((5, 5), bool)):
        for run in (functools.partial(layer.apply, {}, mutable=["cache"]), theirs):
            with pytest.raises(ValueError, match="drops old ones: write cache_length="):
                run(x, decode=True, mask=mask)
    assert theirs(x, mask=masks.Lengths(jnp.array([1, 2]))).shape == (2, 5, 8)  # without the cache it is allowed


def test_a_kept_context_gives_the_numbers_of_the_context_without_it():
    x, context = draw(0, (2, 5, 4), (2, 7, 3))
    layer = AttentionLayer(2, 8, mask=None, normalize_heads="rms")
    variables = layer.init(jax.random.key(0), x, context=context)
    expected = layer.apply(variables, x, context=context)
    kept, cache = layer.apply(variables, x[:, :1], context=context, keep_context=True, mutable=["cache"])
    rest = layer.apply(variables | cache, x[:, 1:], keep_context=True)
    np.testing.assert_allclose(jnp.concatenate([kept, rest], 1), expected, atol=1e-6)
    padding = masks.Lengths(jnp.array([3, 6]))
    expected = layer.apply(variables, x, context=context, mask=padding)
    np.testing.assert_allclose(layer.apply(variables | cache, x, keep_context=True, mask=padding), expected, atol=1e-6)
    with pytest.raises(ValueError, match="the cache has none: pass context="):
        layer.apply(variables, x, keep_context=True)
    with pytest.raises(ValueError, match="mutable"):
        layer.apply(variables, x, context=context, keep_context=True)


CACHES = [{"cache_length": 9}, {"rolling_cache": True, "mask": masks.SlidingWindow(3)}]


@pytest.mark.parametrize("options", CACHES)
def test_a_chunk_without_real_tokens_leaves_a_cache_as_it_was(options):
    (x,) = draw(0, (2, 5, 4))
    layer = AttentionLayer(2, 8, **options)
    variables = layer.init(jax.random.key(0), x)
    decode = functools.partial(layer.apply, decode=True, mutable=["cache"])
    _, before = decode(variables, x[:, :3], lengths=jnp.array([3, 0]))
    _, after = decode(variables | before, x[:, 3:], lengths=jnp.array([0, 0]))
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_cache_is_gathered_by_example(axis):
    cache = {"layer": {"key": np.arange(36).reshape(3, 3, 4), "length": np.arange(9).reshape(3, 3)}}
    order = [2, 0, 0, 1]
    expected = jax.tree.map(lambda leaf: leaf[order] if axis == 0 else leaf[:, order], cache)
    jax.tree.map(np.testing.assert_array_equal, reorder_cache(cache, jnp.array(order), axis), expected)


@pytest.mark.parametrize(
    ("cache", "indices", "words"),
    [
        (jnp.ones((3, 2)), [3], "from 0 to 2"),
        (jnp.ones((3, 2)), [1, -1], "from 0 to 2"),
        (jnp.ones((3, 2)), [[0]], "one axis of numbers"),
        (jnp.ones((0, 2)), [0], "array of shape (0, 2)"),
        ({"key": jnp.ones((3, 2)), "length": jnp.ones(())}, [0], "array of shape ()"),
    ],
    ids=str,
)
def test_examples_that_a_cache_lacks_are_named(cache, indices, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        reorder_cache(cache, jnp.array(indices))


def test_an_axis_counted_from_the_end_is_named_as_it_is_another_in_each_array():
    with pytest.raises(ValueError, match="axis=-1 is another one in each array of a cache: write the batch axis"):
        reorder_cache({"key": jnp.ones((2, 3, 2)), "length": jnp.ones(2)}, jnp.array([1, 0]), axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize("options", CACHES)
def test_a_reordered_cache_continues_other_beams(options):
    (x,) = draw(0, (3, 6, 4))
    layer = AttentionLayer(2, 8, rotary_base=100.0, **options)
    variables = layer.init(jax.random.key(0), x)
    decode = functools.partial(layer.apply, decode=True, mutable=["cache"])
    _, cache = decode(variables, x[:, :5], lengths=jnp.array([5, 2, 4]))
    order = jnp.array([2, 0, 0, 1])
    output, _ = decode(variables | reorder_cache(cache, order), x[order, 5:])
    expected, _ = decode(variables | cache, x[:, 5:])
    np.testing.assert_allclose(output, expected[order], atol=1e-6)


def test_a_full_cache_is_found_before_the_compiled_call():
    (x,) = draw(0, (2, 5, 4))
    layer = AttentionLayer(2, 8, cache_length=6)
    variables = layer.init(jax.random.key(0), x)
    _, cache = layer.apply(variables, x, decode=True, lengths=jnp.array([5, 2]), mutable=["cache"])
    check_room(cache, 1)
    with pytest.raises(ValueError, match="cache/cache holds 5 of 6 tokens, so 2 more do not fit"):
        check_room(cache, 2)


@pytest.mark.parametrize("cache", [None, [], NNXGPT], ids=str)
def test_only_a_dictionary_can_be_checked_for_room(cache):
    cache = cache(GPTConfig(11, 9, 1, 2, 8), rngs=nnx.Rngs(0)) if isinstance(cache, type) else cache
    with pytest.raises(TypeError, match=rf"cache is a {type(cache).__name__}, but must be a dictionary: write"):
        check_room(cache, 100)


def nothing_cached(model, like):
    """A function that continues an empty cache of two examples, in Linen or NNX; it computes no numbers."""
    if isinstance(model, nnx.Module):
        model.init_cache(2)
        return lambda x: nnx.eval_shape(lambda model, x: model(x, decode=True), model, x)
    variables = jax.eval_shape(functools.partial(model.init, decode=True), jax.random.key(0), like)
    return lambda x: jax.eval_shape(functools.partial(model.apply, decode=True, mutable=["cache"]), variables, x)


WIDTHS = {"latent_width": 6, "head_width": 4, "rotary_width": 2, "cache_length": 9}
WINDOW = {"mask": masks.SlidingWindow(3), "rolling_cache": True}
LAYERS = {
    "linen": lambda: AttentionLayer(2, 8, cache_length=9),
    "rotary": lambda: AttentionLayer(2, 8, cache_length=9, rotary_base=100.0),
    "rolling": lambda: AttentionLayer(2, 8, **WINDOW),
    "latent": lambda: LatentAttention(2, 8, **WIDTHS),
    "nnx": lambda: MultiHeadAttention(2, 4, 8, cache_length=9, rngs=nnx.Rngs(0)),
    "nnx rolling": lambda: MultiHeadAttention(2, 4, 8, **WINDOW, rngs=nnx.Rngs(0)),
    "nnx latent": lambda: NNXLatentAttention(2, 4, 8, **WIDTHS, rngs=nnx.Rngs(0)),
}
MODELS = {
    "gpt": lambda: GPT(GPTConfig(11, 9, 1, 2, 8)),
    "rotary gpt": lambda: GPT(GPTConfig(11, 9, 1, 2, 8, rotary=True)),
    "nnx gpt": lambda: NNXGPT(GPTConfig(11, 9, 1, 2, 8), rngs=nnx.Rngs(0)),
    "llama": lambda: Llama(LlamaConfig(11, 9, 1, features=8, hidden_features=12, num_heads=2, num_kv_heads=1)),
}


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 2)], ids=str)
@pytest.mark.parametrize("name", [*LAYERS, *MODELS])
def test_a_cache_goes_on_with_its_own_examples_alone(name, batch):
    is_layer = name in LAYERS
    shape, dtype = ((1, 4), jnp.float32) if is_layer else ((1,), jnp.int32)
    decode = nothing_cached((LAYERS | MODELS)[name](), jnp.ones((2, *shape), dtype))
    decode(jnp.ones((2, *shape), dtype))
    with pytest.raises(ValueError, match=rf"(x|tokens) has the batch {re.escape(str(batch))}, but .* batch \(2,\)"):
        decode(jnp.ones((*batch, *shape), dtype))


@pytest.mark.parametrize("name", LAYERS)
def test_a_cache_goes_on_in_its_own_type_alone(name):
    decode = nothing_cached(LAYERS[name](), jnp.ones((2, 1, 4)))
    with pytest.raises(TypeError, match=r"x has dtype bfloat16, but the cache holds float32: write x\.astype\(jnp\.fl"):
        decode(jnp.ones((2, 1, 4), jnp.bfloat16))


def test_a_cache_of_other_heads_is_refused():
    x = jnp.ones((2, 1, 4))
    layer = AttentionLayer(2, 8, cache_length=9)
    variables = jax.eval_shape(functools.partial(layer.init, decode=True), jax.random.key(0), x)
    other = functools.partial(layer.clone(num_heads=4).apply, decode=True, mutable=["cache"])
    with pytest.raises(ValueError, match=r"heads of shape \(2, 4\), but this layer has \(4, 2\)"):
        jax.eval_shape(other, variables, x)


@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith("nnx")])
def test_an_empty_cache_takes_the_type_that_is_asked_for_in_place_of_the_one_before(name):
    layer = LAYERS[name]()
    for dtype in (jnp.bfloat16, jnp.float32):
        layer.init_cache(2, dtype=dtype)
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(layer, nnx.Cache))} == {jnp.int32.dtype, dtype.dtype}
