"""Ring attention on a ring of one device; `test_ring_devices.py` has eight."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import and_slowly, draw, patched
from jax.sharding import AxisType

from jaxattn import GPT, AttentionLayer, GPTConfig, dot_product_attention, masks, ring_attention
from jaxattn.kernels.native import library
from jaxattn.ring import Ring

MESH = jax.make_mesh((1,), ("tokens",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
RING = functools.partial(ring_attention, mesh=MESH, axis="tokens")
IDS = jnp.array([[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1]])
KEY_IDS = jnp.array([[1, 0, 0, 2, 2, 1], [1, 1, 0, 0, 3, 3]])


@pytest.mark.parametrize("segments", [(IDS,), (IDS[1],), (IDS, KEY_IDS), (IDS, KEY_IDS[0])], ids=lambda s: str(len(s)))
def test_segments_of_queries_and_of_keys_hold_in_the_ring_with_gradients(segments):
    query, key, value, gradient = draw(0, (2, 6, 4, 3), (2, 6, 2, 3), (2, 6, 2, 5), (2, 6, 4, 5))
    options = dict(zip(("segment_ids", "key_segment_ids"), segments, strict=False))
    # A batch of their own for both, as a mask of one sequence has none.
    mask = masks.Causal() & masks.Segments(*segments)
    came, vjp = jax.vjp(lambda *args: RING(*args, masks.Causal(), **options), query, key, value)
    alone = lambda *args: dot_product_attention(*args, mask, implementation="dense")  # noqa: E731
    expected, expected_vjp = jax.vjp(alone, query, key, value)
    chex.assert_trees_all_close((came, vjp(gradient)), (expected, expected_vjp(gradient)), atol=2e-6)
    assert np.abs(came - RING(query, key, value, masks.Causal())).max() > 0.01  # documents matter


@pytest.mark.parametrize("mask", [None, masks.Segments(IDS, KEY_IDS), masks.Lengths(jnp.array([2, 5]))], ids=type)
def test_a_layer_with_a_ring_gives_the_numbers_of_one_without(mask):
    (x,) = draw(0, (2, 6, 8))
    fields = {"soft_cap": 2.0, "use_sinks": True, "position_bias": "alibi", "rotary_base": 100.0}
    alone = AttentionLayer(2, 8, 0.4, **fields)
    ring = alone.clone(ring=Ring(MESH, "tokens"))
    variables = alone.init(jax.random.key(0), x)
    run = functools.partial(jax.jit, static_argnums=0)(
        lambda layer: layer.apply(variables, x, False, jax.random.key(1), mask=mask)
    )
    chex.assert_trees_all_close(run(ring), run(alone), atol=2e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"return_weights": True},
        {"decode": True, "mutable": ["cache"]},
        {"context": jnp.ones((2, 4, 8)), "keep_context": True, "mutable": ["cache"]},
        {"mutable": ["intermediates"]},
    ],
    ids=lambda options: ", ".join(options),
)
def test_a_layer_with_a_ring_says_what_it_cannot_do(options):
    (x,) = draw(0, (2, 6, 8))
    layer = AttentionLayer(2, 8, mask=None, cache_length=6)
    variables = layer.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="write ring=None"):
        layer.clone(ring=Ring(MESH, "tokens")).apply(variables, x, **options)


@pytest.mark.skipif(library.missing() is not None, reason="the library is not compiled")
def test_the_native_kernel_runs_inside_a_ring_forward_and_backward():
    heads = jax.ShapeDtypeStruct((1, 512, 2, 8), jnp.float32)
    run = jax.jit(jax.grad(lambda x: RING(x, x, x, masks.Causal()).sum()))
    lowered = run.trace(heads).lower(lowering_platforms=("cpu",)).as_text()
    assert "jaxattn_forward" in lowered
    assert "jaxattn_backward" in lowered


def test_gpt_takes_tokens_in_natural_order():
    model = GPT(GPTConfig(256, 8, 1, 2, 8), ring=Ring(MESH, "tokens", order="zigzag"))
    with pytest.raises(ValueError, match=r"ring has order='zigzag'.*write Ring\(mesh, axis\)"):
        model.init(jax.random.key(0), jnp.zeros(8, jnp.int32))


def test_a_mask_of_another_kind_is_named_with_what_to_write():
    class Even(masks.Mask):
        def expanded(self, T, S):
            return self

        def allows(self, queries, keys):
            return (queries + keys) % 2 == 0

    jax.tree_util.register_static(Even)
    heads = jnp.ones((2, 6, 2, 4))
    with pytest.raises(TypeError, match=r"mask is a Even.*write mask.array\(T, S\)"):
        RING(heads, heads, heads, Even())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["highest", ("default", "high")])
def test_every_product_of_a_ring_has_the_precision_asked_for(precision):
    (x,) = draw(0, (1, 6, 8))
    layer = AttentionLayer(2, 8, precision=precision, ring=Ring(MESH, "tokens"))
    variables = layer.init(jax.random.key(0), x)
    heads = x.reshape(1, 6, 2, 4)
    with patched((library, "missing", lambda: "is not there")):  # so that XLA multiplies
        of_layer = jax.jit(layer.apply).lower(variables, x).as_text()
        of_ring = jax.jit(jax.grad(lambda x: RING(x, x, x, precision=precision).sum())).lower(heads).as_text()
    words = "[HIGHEST, HIGHEST]" if precision == "highest" else "[HIGH, HIGH]"
    for lowered, count in ((of_layer, 2), (of_ring, 6)):
        assert sum(words in line for line in lowered.splitlines() if "dot_general" in line) >= count


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"segment_ids": IDS.astype(float)}, TypeError, "segment_ids has dtype float32"),
        ({"segment_ids": IDS[:, :4]}, ValueError, r"segment_ids has shape \(2, 4\).*\(2, 6\)"),
        ({"segment_ids": IDS, "key_segment_ids": IDS[:, :4]}, ValueError, r"key_segment_ids has shape \(2, 4\)"),
        ({"key_segment_ids": IDS}, ValueError, "key_segment_ids is given without segment_ids"),
        ({"dropout_rate": 0.5}, ValueError, "dropout_key"),
        ({"bias": jnp.ones((6, 5))}, ValueError, r"bias has shape \(6, 5\)"),
        ({"scale": "2"}, TypeError, "scale is '2'"),
        ({"precision": "good"}, ValueError, "precision='good'"),
    ],
)
def test_bad_input_of_a_ring_is_named(options, error, words):
    heads = jnp.ones((2, 6, 2, 4))
    with pytest.raises(error, match=words):
        RING(heads, heads, heads, **options)


@pytest.mark.parametrize(
    ("fields", "call"),
    [
        ({"cache_length": 9}, {"decode": True, "mutable": ["cache"]}),
        ({"mask": None}, {"context": jnp.ones((2, 3, 8)), "keep_context": True, "mutable": ["cache"]}),
        ({}, {"return_weights": True}),
        ({}, {"mutable": ["intermediates"]}),
    ],
    ids=str,
)
def test_a_layer_refuses_each_option_that_its_ring_does_not_support(fields, call):
    x = jax.ShapeDtypeStruct((2, 6, 8), jnp.float32)
    layer = AttentionLayer(2, 8, **fields)
    init_call = {name: call[name] for name in ("context",) if name in call}
    variables = jax.eval_shape(lambda x: layer.init(jax.random.key(0), x, **init_call), x)
    with pytest.raises(ValueError, match="ring shards the tokens over devices"):
        jax.eval_shape(lambda v, x: layer.clone(ring=Ring(MESH, "tokens")).apply(v, x, **call), variables, x)


@pytest.mark.slow
def test_a_ring_takes_a_scale_of_any_type_and_differentiates_it():
    query, key, value = draw(0, *[(1, 6, 2, 4)] * 3)
    expected = dot_product_attention(query, key, value, scale=2.0)
    for scale in (2, 2.0, np.float32(2), np.int64(2), np.array(2.0), jnp.array(2.0)):
        chex.assert_trees_all_close(RING(query, key, value, scale=scale), expected, atol=2e-6)
    half = [array.astype(jnp.bfloat16) for array in (query, key, value)]
    assert RING(*half, scale=jnp.array(2.0)).dtype == jnp.bfloat16
    came, right = (
        jax.grad(lambda scale, f=f: (f(query, key, value, scale=scale) ** 2).sum())(jnp.array(0.7))
        for f in (RING, dot_product_attention)
    )
    chex.assert_trees_all_close(came, right, rtol=1e-4)


@pytest.mark.parametrize("empty", [{"T": 0}, {"D": 0}, *and_slowly({"B": 0}, {"H": 0, "K": 0}, {"H": 0}, {"D_v": 0})])
def test_a_size_of_zero_gives_what_is_left_with_gradients(empty):
    B, T, H, K, D, D_v = ({"B": 2, "T": 6, "H": 4, "K": 2, "D": 3, "D_v": 5} | empty).values()
    arrays = draw(0, (B, T, H, D), (B, T, K, D), (B, T, K, D_v))
    context, vjp = jax.vjp(lambda *arrays: RING(*arrays, masks.Causal()), *arrays)
    expected, expected_vjp = jax.vjp(lambda *arrays: dot_product_attention(*arrays, masks.Causal()), *arrays)
    chex.assert_trees_all_close((context, vjp(context)), (expected, expected_vjp(expected)), atol=2e-6)


def test_a_mesh_that_is_none_is_named():
    heads = jnp.ones((2, 6, 4, 3))
    with pytest.raises(TypeError, match=r"mesh is None, but must be a jax.sharding.Mesh: write jax.make_mesh"):
        ring_attention(heads, heads, heads, mesh=None, axis="tokens")
