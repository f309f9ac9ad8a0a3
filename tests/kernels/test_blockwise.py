"""What is particular to blockwise attention: block sizes, memory, and which blocks are skipped."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import KERNELS, draw

from jaxattn import dot_product_attention, explain_implementation, masks
from jaxattn.kernels import blocks, plan
from jaxattn.kernels.call import checked_call

blockwise, dense = KERNELS["blockwise"], KERNELS["dense"]


@pytest.mark.slow
def test_dropped_entries_are_those_of_dense_attention_at_every_block_size(monkeypatch):
    query, key, value = draw(0, *[(2, 100, 2, 8)] * 3)
    options = {"dropout_rate": 0.5, "dropout_key": jax.random.key(1)}
    expected = dense(query, key, value, masks.Causal(), **options)
    for side in (16, 48, 128):
        monkeypatch.setattr(blocks, "SIDE", side)
        jax.clear_caches()  # compiled with other blocks
        came = blockwise(query, key, value, masks.Causal(), **options)
        chex.assert_trees_all_close(came, expected, atol=1e-5)
    assert not np.allclose(expected, blockwise(query, key, value, masks.Causal()))


def temporary_bytes(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arrays).compile().memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_length_and_not_with_its_square():
    loss = lambda q, k, v: blockwise(q, k, v, masks.Causal()).sum()  # noqa: E731
    sizes = [temporary_bytes(jax.grad(loss, (0, 1, 2)), *[(1, T, 2, 8)] * 3) for T in (4096, 8192)]
    assert sizes[1] < 2 * sizes[0] < 8192 * 8192


def test_vmap_takes_the_memory_of_the_batch():
    attend = lambda q, k, v: dot_product_attention(q, k, v, masks.Causal())  # noqa: E731
    loss = lambda f: jax.grad(lambda *arrays: f(*arrays).sum(), (0, 1, 2))  # noqa: E731
    shapes = [(64, 128, 8, 16)] * 3
    batched, mapped = (temporary_bytes(loss(f), *shapes) for f in (attend, jax.vmap(attend)))
    assert mapped < 1.1 * batched


def test_a_bias_that_is_not_mapped_is_not_copied():
    attend = lambda q, k, v, bias: blockwise(q, k, v, bias=bias)  # noqa: E731
    heads = [(16, 256, 2, 8)] * 3
    mapped = temporary_bytes(jax.vmap(attend, (0, 0, 0, None)), *heads, (2, 256, 256))
    assert mapped - temporary_bytes(jax.vmap(blockwise), *heads) < 4 * 4 * 2 * 256 * 256  # 16 copies without care


@pytest.mark.parametrize(
    ("mask", "most"),
    [
        (masks.Causal(), 10 * 10 / 2 + 10),
        (masks.SlidingWindow(64), 2 * 10),
        (masks.SlidingWindow(64) | masks.Lengths(jnp.asarray(4)), 3 * 10),
        (masks.Causal() & masks.Segments(jnp.arange(5120) // 512), 10),
    ],
)
def test_masked_blocks_are_skipped_inside_the_range_of_keys_too(mask, most):
    heads = jnp.zeros((1, 5120, 1, 8))
    call = checked_call(heads, heads, heads, mask)
    for outer_is_query in (True, False):
        chosen = blocks.choose_blocks(dataclasses.replace(call, band=masks.Band()), 5120, 5120)
        planned = plan.plan_blocks(call, chosen, outer_is_query)
        assert chosen.outer_count == chosen.inner_count == 10
        assert int(planned.counts.sum()) <= most


@pytest.mark.parametrize(
    "mask",
    [
        masks.SlidingWindow(20, 30),
        masks.SlidingWindow(3, -40),
        masks.Causal(-70),
        masks.SlidingWindow(40) | masks.SlidingWindow(5, 50),
        masks.SlidingWindow(50, 7) & masks.Segments(jnp.arange(480) // 160, jnp.arange(512) // 160),
        masks.Lengths(jnp.array(65)),
        None,
    ],
)
def test_each_unmasked_entry_lies_in_one_planned_block_and_no_planned_block_is_empty(monkeypatch, mask):
    monkeypatch.setattr(blocks, "SIDE", 32)
    query, key = jnp.zeros((1, 480, 1, 8)), jnp.zeros((1, 512, 1, 8))
    call = checked_call(query, key, key, mask)
    allowed = np.ones((480, 512), bool) if mask is None else np.asarray(mask.array(480, 512))
    for outer_is_query, rows in ((True, allowed), (False, allowed.T)):
        chosen = blocks.choose_blocks(call, *rows.shape)
        planned = plan.plan_blocks(call, chosen, outer_is_query)
        for outer, block in enumerate(np.split(rows, chosen.outer_count)):
            heads, _ = chosen.at(outer)
            count, first = planned.blocks_of(heads, outer)
            starts = [int(first(step)) for step in range(int(count))]
            assert starts == sorted(starts)
            computed = np.zeros(rows.shape[1], int)
            for start in starts:
                computed[start : start + chosen.inner] += 1
                assert start + chosen.inner <= rows.shape[1]
                assert block[:, start : start + chosen.inner].any()
            assert (computed[block.any(0)] == 1).all()
            assert computed.max(initial=0) <= 1


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


def test_weights_are_refused_by_the_kernel_that_does_not_store_them():
    (x,) = draw(0, (40, 1, 2))
    with pytest.raises(ValueError, match="implementation='blockwise' does not store the weights"):
        blockwise(x, x, x, return_weights=True)
    _, weights = dot_product_attention(x, x, x, return_weights=True)
    assert weights.shape == (1, 40, 40)
    assert explain_implementation(x, x, x, return_weights=True).startswith("dense runs: it alone returns the weights")
