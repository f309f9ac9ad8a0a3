import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxattn import masks


@given(st.integers(0, 6), st.integers(0, 6), st.integers(-3, 6), st.integers(1, 4))
def test_masks_follow_their_definitions(T, S, offset, size):
    arrays = [
        (masks.Causal(offset), lambda t, s: s <= t + offset),
        (masks.Causal(jnp.array(offset)), lambda t, s: s <= t + offset),
        (masks.SlidingWindow(size, offset), lambda t, s: t + offset - size < s <= t + offset),
        (masks.Lengths(jnp.array(size)), lambda t, s: s < size),
        (masks.Segments(jnp.arange(T) // 2, jnp.arange(S) // 3), lambda t, s: t // 2 == s // 3),
        (masks.Causal() & masks.Lengths(jnp.array(size)), lambda t, s: s <= t and s < size),
        (masks.Causal() | masks.Lengths(jnp.array(size)), lambda t, s: s <= t or s < size),
    ]
    for mask, allows in arrays:
        expected = np.array([[allows(t, s) for s in range(S)] for t in range(T)], bool).reshape(T, S)
        np.testing.assert_array_equal(mask.array(T, S), expected, err_msg=str(mask))


def test_masks_of_a_batch_and_arrays_combine():
    lengths, ids = masks.Lengths(jnp.array([1, 3])), masks.Segments(jnp.array([[0, 0, 1], [0, 1, 1]]))
    array = jax.random.bernoulli(jax.random.key(0), 0.5, (3, 3))
    both = np.asarray(lengths.array(3, 3)) & np.asarray(ids.array(3, 3))
    np.testing.assert_array_equal((lengths & ids).array(3, 3), both)
    np.testing.assert_array_equal((lengths & ids & array).array(3, 3), both & np.asarray(array))
    np.testing.assert_array_equal(
        (np.asarray(array) | ids).array(3, 3), np.asarray(array) | np.asarray(ids.array(3, 3))
    )
    assert (lengths & ids & masks.Causal()).with_heads().array(3, 3).shape == (2, 1, 3, 3)


def test_traced_ids_lengths_and_offsets_work_under_jit_and_vmap():
    ids = jnp.array([[0, 0, 1], [0, 1, 1]])
    mask = jax.jit(lambda mask: mask.array(3, 3))(masks.Causal(jnp.array(1)) & masks.Segments(ids))
    each = jax.vmap(lambda ids: (masks.Causal(1) & masks.Segments(ids)).array(3, 3))(ids)
    np.testing.assert_array_equal(mask, each)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: masks.Causal() & jnp.ones((3, 3)), TypeError, "mask has dtype float32.*boolean"),
        (lambda: masks.SlidingWindow(0), ValueError, "size=0"),
        (lambda: masks.Lengths(jnp.ones(2)).array(3, 3), TypeError, "lengths has dtype float32"),
        (lambda: masks.Segments(jnp.zeros(4, int)).array(3, 3), ValueError, r"ids has shape \(4,\).*3"),
        (lambda: masks.Segments(jnp.zeros(3, int)).array(3, 4), ValueError, "key_ids"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


@given(
    rows=st.integers(1, 4), columns=st.integers(1, 4), bq=st.integers(1, 5), bk=st.integers(1, 5),
    seed=st.integers(0, 2**31 - 1),
)  # fmt: skip
def test_a_block_with_an_unmasked_entry_is_never_skipped(rows, columns, bq, bk, seed):
    rng, T, S = np.random.default_rng(seed), rows * bq, columns * bk
    ids, key_ids = (jnp.asarray(rng.integers(0, 4, (2, n))) for n in (T, S))
    mask = masks.SlidingWindow(int(rng.integers(1, 6)), jnp.asarray(rng.integers(-3, 4, 2)))
    mask |= masks.Segments(ids, key_ids) & masks.Lengths(jnp.asarray(rng.integers(0, S + 1, 2)))
    mask &= jnp.asarray(rng.random((T, S)) < 0.8) | masks.Causal(2)
    allowed = np.asarray(mask.array(T, S)).reshape(2, rows, bq, columns, bk).any((2, 4))

    def cut(array):
        down, across = (
            (1, 1) if n == 1 else c for n, c in zip(array.shape[-2:], ((rows, bq), (columns, bk)), strict=True)
        )
        return array.reshape(*array.shape[:-2], *down, *across)

    expanded = jax.tree.map(cut, mask.expanded(T, S))
    queries, keys = jnp.arange(T).reshape(rows, bq, 1, 1), jnp.arange(S).reshape(1, 1, columns, bk)
    said = np.broadcast_to(expanded.block_mask(queries, keys), allowed.shape)
    assert (said | ~allowed).all()


def test_blocks_that_are_masked_by_position_are_skipped():
    queries, keys = jnp.arange(8).reshape(4, 2, 1, 1), jnp.arange(8).reshape(1, 1, 4, 2)
    causal = masks.Causal().expanded(8, 8)
    causal = jax.tree.map(lambda leaf: leaf.reshape(1, 1, 1, 1), causal)
    np.testing.assert_array_equal(causal.block_mask(queries, keys), np.tril(np.ones((4, 4), bool)))
    window = jax.tree.map(lambda leaf: leaf.reshape(1, 1, 1, 1), masks.SlidingWindow(2).expanded(8, 8))
    expected = np.tril(np.ones((4, 4), bool)) & ~np.tril(np.ones((4, 4), bool), -2)
    np.testing.assert_array_equal(window.block_mask(queries, keys), expected)
