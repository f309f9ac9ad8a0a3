"""One token, or a few, against a long cache."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import KERNELS, MASKS, POSITION_MASKS, and_slowly, draw, draw_heads, draw_mask, patched, relative_error
from jax import export

from jaxattn import dot_product_attention, explain_implementation, masks
from jaxattn.kernels import few_queries
from jaxattn.kernels.call import checked_call

blockwise, dense = KERNELS["blockwise"], KERNELS["dense"]


@pytest.fixture(autouse=True, scope="module")
def many_small_blocks():
    with patched((few_queries, "MANY_KEYS", 128), (few_queries, "BLOCK_CPU", 1)):
        yield


@pytest.mark.parametrize("kind", [*MASKS, *POSITION_MASKS])
@pytest.mark.parametrize(("T", "H"), [(2, 6), *and_slowly((1, 2), (3, 4))])
def test_context_and_gradients_equal_float64_written_out(kind, T, H):
    S = 300  # two blocks of 128 and a part of a third
    query, key, value, gradient = draw(0, (2, T, H, 4), (2, S, 2, 4), (2, S, 2, 3), (2, T, H, 3))
    mask, (bias,) = draw_mask(kind, (2,), T, S, H, 1), draw(2, (H, 1, S))
    mask_array = mask.with_heads().array(T, S) if isinstance(mask, masks.Mask) else mask
    assert few_queries.unsupported(checked_call(query, key, value, mask)) is None
    context, vjp = jax.vjp(lambda *inputs: blockwise(*inputs, mask, bias=bias), query, key, value)
    assert relative_error(context, oracle.attend(query, key, value, mask_array, bias=bias)[0]) < 4e-6
    expected = oracle.gradients(query, key, value, gradient, mask_array, bias=bias)
    for came, right in zip(vjp(gradient), expected, strict=False):
        assert np.abs(came - right).max() < 1e-5


def test_dropped_entries_are_those_of_dense_attention():
    query, key, value = draw_heads(0, T=2, S=300)
    options = {"dropout_rate": 0.5, "dropout_key": jax.random.key(1)}
    expected = dense(query, key, value, masks.Causal(200), **options)
    chex.assert_trees_all_close(blockwise(query, key, value, masks.Causal(200), **options), expected, atol=1e-5)


def test_heads_without_features_have_an_empty_context():
    query, key = (jnp.ones((2, n, 2, 0)) for n in (1, 300))
    assert few_queries.unsupported(checked_call(query, key, key)) is None
    assert blockwise(query, key, key).shape == (2, 1, 2, 0)


def test_each_examples_length_holds_under_vmap():
    query, key, value = draw_heads(0, (3,), T=1, S=300)
    lengths = jnp.array([0, 5, 290])
    run = lambda q, k, v, n: blockwise(q, k, v, masks.Lengths(n))  # noqa: E731
    chex.assert_trees_all_close(
        jax.vmap(run)(query, key, value, lengths), dense(query, key, value, masks.Lengths(lengths)), atol=1e-6
    )


@pytest.mark.parametrize("mask", [masks.Lengths(jnp.array([100, 250])), masks.Causal(jnp.array([99, 249]))])
def test_keys_behind_the_filled_part_of_a_cache_are_not_read(mask):
    query, key, value = draw_heads(0, T=1, S=640)
    expected = dense(query, key, value, mask)
    # 0 · NaN is NaN, so a block that is read shows.
    unfilled = jnp.arange(640)[None, :, None, None] >= jnp.array([128, 256])[:, None, None, None]
    key, value = (jnp.where(unfilled, jnp.nan, array) for array in (key, value))
    for implementation in ("blockwise", None):
        came = dot_product_attention(query, key, value, mask, implementation=implementation)
        chex.assert_trees_all_close(came, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("S", [1030, 1038])
def test_a_last_block_may_begin_before_the_one_in_front_of_it_ends(monkeypatch, S):
    monkeypatch.setattr(few_queries, "BLOCK_CPU", 2**20)  # so that 1024 keys are one block
    query, key, value = draw_heads(0, (1,), T=1, S=S)
    chex.assert_trees_all_close(blockwise(query, key, value), dense(query, key, value), atol=1e-6)


def test_examples_are_computed_one_by_one_on_one_cpu_and_all_at_once_elsewhere(monkeypatch):
    query, key, value = draw_heads(0, (3, 2), T=1, S=300)
    call = checked_call(query, key, value)
    steps = lambda platform: few_queries._choose_blocks(dataclasses.replace(call, platform=platform)).steps  # noqa: E731
    assert (steps("cpu"), steps("tpu"), steps("cuda")) == (6, 1, 1)
    monkeypatch.setattr(few_queries, "on_one_device", lambda platform: False)
    assert steps("cpu") == 1


def test_a_long_cache_is_read_once_and_not_copied():
    query, key = (jax.ShapeDtypeStruct((2, n, 8, 64), jnp.float32) for n in (1, 20_000))
    run = lambda q, k, v, n: blockwise(q, k, v, masks.Lengths(n))  # noqa: E731
    compiled = jax.jit(run).lower(query, key, key, jax.ShapeDtypeStruct((2,), jnp.int32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * key.size / 4


def test_other_kernels_run_for_many_queries_and_for_few_keys():
    def chosen(T, S, G=1):
        query, key, value = (jnp.zeros((1, n, heads, 8)) for n, heads in ((T, G), (S, 1), (S, 1)))
        return few_queries.unsupported(checked_call(query, key, value))

    assert chosen(1, 128) is chosen(8, 128) is chosen(2, 128, 4) is None
    assert all("is for few queries and many keys" in chosen(*sizes) for sizes in ((9, 128), (1, 127), (3, 128, 3)))


def test_the_explanation_names_the_reason(monkeypatch):
    query, key, _ = draw_heads(0, T=1, S=300)
    first = explain_implementation(query, key, key, masks.Lengths(jnp.array([3, 4]))).splitlines()[0]
    assert first.startswith("native runs" if "native" in KERNELS else "blockwise runs: it reads each key once")


def test_off_the_cpu_blocks_are_skipped_where_a_mask_says_so_and_dense_reads_all_otherwise():
    query, key = (jax.ShapeDtypeStruct((2, n, 4, 64), jnp.bfloat16) for n in (1, 4096))
    for mask, loops in ((masks.Lengths(jnp.array([3, 4])), True), (None, False)):
        run = jax.jit(lambda q, k, mask=mask: dot_product_attention(q, k, k, mask))
        program = export.export(run, platforms=["cuda"])(query, key).mlir_module()
        assert ("stablehlo.while" in program) == loops
