import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxattn import attention_weights, dot_product_attention, masks, renormalized_weights
from jaxattn.kernels.call import checked_call


@given(st.integers(0, 6), st.integers(0, 6), st.integers(-3, 6), st.integers(1, 4))
def test_masks_follow_their_definitions(T, S, offset, size):
    arrays = [
        (masks.Causal(offset), lambda t, s: s <= t + offset),
        (masks.Causal(jnp.array(offset)), lambda t, s: s <= t + offset),
        (masks.SlidingWindow(size, offset), lambda t, s: t + offset - size < s <= t + offset),
        (masks.SlidingWindow(size, offset, right=2), lambda t, s: t + offset - size < s <= t + offset + 2),
        (masks.Chunked(size, offset), lambda t, s: (t + offset) // size == s // size),
        (masks.Chunked(size, jnp.array(offset)), lambda t, s: (t + offset) // size == s // size),
        (masks.Causal() | masks.Prefix(size), lambda t, s: s <= t or s < size),
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


@pytest.mark.parametrize("offset", [-2, 0, 3])
def test_a_shifted_mask_is_the_mask_of_queries_further_on(offset):
    segments, lengths = masks.Segments(jnp.arange(6) // 2), masks.Lengths(jnp.array(4))
    causal, window = masks.Causal(1), masks.SlidingWindow(2, 1)
    for shift in (offset, jnp.asarray(offset)):
        for mask, expected in (
            (causal, masks.Causal(1 + offset)),
            (window, masks.SlidingWindow(2, 1 + offset)),
            (segments, segments),  # names tokens, not positions
            (lengths, lengths),
            (causal & segments, masks.Causal(1 + offset) & segments),
            (window | lengths, masks.SlidingWindow(2, 1 + offset) | lengths),
        ):
            np.testing.assert_array_equal(mask.shifted(shift).array(6, 6), expected.array(6, 6))


@pytest.mark.parametrize(
    ("mask", "band"),
    [
        (masks.Causal(2), (None, 2)),
        (masks.SlidingWindow(3, 1), (-1, 1)),
        (masks.Causal(jnp.array(2)), (None, None)),
        (masks.SlidingWindow(3, jnp.array(1)), (None, None)),
        (masks.Lengths(4), (None, None)),
        (masks.Lengths(4) & masks.Lengths(5), (None, None)),
        (masks.Causal(2) & masks.Lengths(4), (None, 2)),
        (masks.Causal(2) | masks.Lengths(4), (None, None)),
        (masks.Causal(2) & masks.Causal(-1), (None, -1)),
        (masks.Causal(2) | masks.Causal(-1), (None, 2)),
        (masks.SlidingWindow(3, 1) & masks.SlidingWindow(3, 2), (0, 1)),
        (masks.SlidingWindow(3, 1) | masks.SlidingWindow(3, 2), (-1, 2)),
        (masks.SlidingWindow(3, 1) | masks.Causal(0), (None, 1)),
    ],
    ids=str,
)
def test_the_band_of_a_mask_holds_all_its_keys_and_no_more_than_it_knows(mask, band):
    assert mask.band() == band
    queries, keys = np.nonzero(np.asarray(mask.array(6, 6)))
    distances = keys - queries
    assert band[0] is None or (distances >= band[0]).all()
    assert band[1] is None or (distances <= band[1]).all()


def test_masks_cannot_be_changed():
    array = jnp.ones((3, 3), bool)
    for mask in (
        masks.Causal(),
        masks.SlidingWindow(2),
        masks.Lengths(2),
        masks.Segments(jnp.arange(3)),
        masks.ArrayMask(array),
        masks.Causal() & array,
        masks.Causal() | array,
    ):
        for field in dataclasses.fields(mask):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(mask, field.name, 1)


def test_masks_combine_with_none_which_allows_everything():
    array, causal = jnp.array([[True, False, True]] * 3), masks.Causal()
    assert masks.combine(None, None) is None
    assert masks.combine(causal, None) is masks.combine(None, causal) is causal
    for first, second in ((None, array), (array, None), (array, array)):
        np.testing.assert_array_equal(masks.combine(first, second).array(3, 3), array)
    both = np.asarray(array) & np.tri(3, dtype=bool)
    for first, second in ((causal, array), (array, causal)):
        np.testing.assert_array_equal(masks.combine(first, second).array(3, 3), both)


def test_blocks_of_other_documents_are_skipped_where_ids_are_in_order():
    ids = jnp.array([0, 0, 1, 1, 1, 1, 3, 3])
    segments = masks.Segments(ids.reshape(4, 2, 1, 1), ids.reshape(1, 1, 4, 2))
    places = jnp.arange(8)
    expected = np.asarray(ids)[::2, None] == np.asarray(ids)[None, ::2]
    came = segments.block_mask(places.reshape(4, 2, 1, 1), places.reshape(1, 1, 4, 2))
    np.testing.assert_array_equal(came, expected)


def test_an_array_as_a_mask_masks_as_the_array_does():
    array = jax.random.bernoulli(jax.random.key(0), 0.5, (2, 1, 3, 3))
    for scores in (jax.random.normal(jax.random.key(1), (2, 4, 3, 3)), jnp.zeros((2, 1, 3, 3))):
        np.testing.assert_array_equal(attention_weights(scores, masks.as_mask(array)), attention_weights(scores, array))
        np.testing.assert_array_equal(
            attention_weights(scores, masks.as_mask(array) & masks.Causal()),
            attention_weights(scores, array & jnp.tril(jnp.ones((1, 1, 3, 3), bool))),
        )


def test_traced_ids_lengths_and_offsets_work_under_jit_and_vmap():
    ids = jnp.array([[0, 0, 1], [0, 1, 1]])
    mask = jax.jit(lambda mask: mask.array(3, 3))(masks.Causal(jnp.array(1)) & masks.Segments(ids))
    each = jax.vmap(lambda ids: (masks.Causal(1) & masks.Segments(ids)).array(3, 3))(ids)
    np.testing.assert_array_equal(mask, each)


@pytest.mark.parametrize(
    "kind",
    [masks.Causal, functools.partial(masks.SlidingWindow, 2), functools.partial(masks.SlidingWindow, 2, right=0)],
)
def test_a_python_int_as_offset_is_static_and_an_array_or_numpy_integer_is_a_leaf(kind):
    bands, run = [], jax.jit(lambda mask: bands.append(mask.band()) or mask.array(3, 3))
    for offset in (1, 1, np.int32(1), np.int32(2), jnp.asarray(1, jnp.int32), 2):
        np.testing.assert_array_equal(run(kind(offset)), kind(int(offset)).array(3, 3))
    # Two ints are two programs, all arrays are one.
    assert [band.last for band in bands] == [1, None, 2]
    axes = jax.tree.map(lambda _: 0, kind(jnp.arange(2)))
    each = jax.vmap(lambda mask: mask.array(3, 3), (axes,))(kind(jnp.arange(2)))
    np.testing.assert_array_equal(each, kind(jnp.arange(2)).array(3, 3))


def test_jit_keeps_the_band_of_a_causal_mask():
    bands, heads = [], jnp.ones((4, 2, 3))
    jax.jit(lambda *args: bands.append(checked_call(*args).band))(heads, heads, heads, masks.Causal())
    assert bands == [masks.Band(last=0)]


@pytest.mark.parametrize("first", [None, -3, 0, 2])
@pytest.mark.parametrize("last", [None, -3, 0, 1])
def test_a_band_counts_its_keys_and_is_the_same_from_the_side_of_a_key(first, last):
    band = masks.Band(first, last)
    inside = lambda band, distance: (  # noqa: E731
        (band.first is None or distance >= band.first) and (band.last is None or distance <= band.last)
    )
    distances = range(-10, 11)
    if None in (first, last):
        assert band.width is None
    else:
        assert band.width == sum(inside(band, distance) for distance in distances)
    for distance in distances:
        assert inside(band.transposed, -distance) == inside(band, distance)


@pytest.mark.parametrize("offset", [2**31 - 1, -(2**31), 2**40, -(2**40), np.uint32(2**32 - 1), np.int32(2**31 - 1)])
def test_offsets_lengths_and_sizes_beyond_every_sequence_do_not_overflow(offset):
    with jax.enable_x64(isinstance(offset, np.generic)):
        for allowed in (
            masks.Causal(offset).array(2, 3),
            masks.Causal(offset).expanded(2, 3).allows(jnp.arange(2)[:, None], jnp.arange(3)[None, :]),
            masks.Lengths(offset).array(2, 3) if abs(offset) < 2**31 else jnp.asarray(offset > 0),
            masks.SlidingWindow(2**40).array(3, 3)[2] if offset > 0 else jnp.zeros(1, bool),
        ):
            np.testing.assert_array_equal(allowed, np.broadcast_to(offset > 0, allowed.shape))


IDS = jnp.array([[0, 0, 1], [0, 1, 1]])
BATCHED = {
    "segments": masks.Segments(IDS),
    "key ids alone": masks.Segments(IDS[0], IDS),
    "lengths": masks.Lengths(jnp.array([1, 2])),
    "offsets": masks.Causal(jnp.array([0, 1])),
    "windows": masks.SlidingWindow(2, jnp.array([0, 1])),
    "chunks": masks.Chunked(2, jnp.array([0, 1])),
    "prefix": masks.Prefix(jnp.array([1, 2])),
    "and": masks.Causal() & masks.Lengths(jnp.array([1, 2])),
    "or": masks.Causal() | masks.Segments(IDS),
}


@pytest.mark.parametrize("kind", BATCHED)
def test_the_batch_of_a_mask_is_never_taken_for_heads(kind):
    mask, scores = BATCHED[kind], jax.random.normal(jax.random.key(0), (2, 2, 3, 3))  # as many heads as examples
    expected = attention_weights(scores, mask.array(3, 3)[:, None])
    for weights in (attention_weights, renormalized_weights):
        with pytest.raises(ValueError, match=r"1 batch axes.*\(2, 2, 3, 3\).*ids\[:, None\]"):
            weights(scores, mask)
        np.testing.assert_allclose(weights(scores, mask.with_heads()), expected, atol=1e-6)
    heads = jax.random.normal(jax.random.key(1), (2, 3, 2, 4))
    attend = functools.partial(dot_product_attention, heads, heads, heads)
    np.testing.assert_allclose(attend(mask), attend(mask.array(3, 3)[:, None]), atol=1e-6)
    # An array next to it must say which of its axes is the batch.
    array = jax.random.bernoulli(jax.random.key(2), 0.7, (2, 3, 3))
    with pytest.raises(ValueError, match=r"array\[:, None\].*array\[None\]"):
        attend(mask & array)
    with pytest.raises(ValueError, match=r"array\[:, None\].*array\[None\]"):
        attention_weights(scores, (mask | array).with_heads())
    alike = mask.array(3, 3)[:, None] & array[:1, None]  # an axis of 1 is the same for all, whatever it is
    np.testing.assert_allclose(attend(mask & array[:1]), attend(alike), atol=1e-6)
    np.testing.assert_allclose(attend(mask & array[:, None]), attend((mask & array).array(3, 3)[:, None]), atol=1e-6)
    np.testing.assert_allclose(attend(mask & array[None]), attend(mask.array(3, 3)[:, None] & array[None]), atol=1e-6)


PADDING, HEADS = jnp.ones((2, 4), bool), jnp.ones((2, 3, 3, 3))


def attend(mask):
    return dot_product_attention(HEADS, HEADS, HEADS, mask)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: masks.Causal() & jnp.ones((3, 3)), TypeError, "mask has dtype float32.*boolean"),
        (lambda: masks.SlidingWindow(0), ValueError, "size=0"),
        (lambda: masks.SlidingWindow(True), ValueError, "size=True"),
        (lambda: masks.SlidingWindow(2, right=-1), ValueError, "right=-1.*at least 0"),
        (lambda: masks.Chunked(0), ValueError, "size=0.*Chunked"),
        (lambda: masks.Lengths(jnp.ones(2)).array(3, 3), TypeError, "lengths has dtype float32"),
        (lambda: masks.Segments(jnp.zeros(4, int)).array(3, 3), ValueError, r"ids has shape \(4,\).*3"),
        (lambda: masks.Segments(jnp.zeros(3, int)).array(3, 4), ValueError, "key_ids"),
        (lambda: masks.Segments(jnp.array(1)).with_heads().array(3, 3), ValueError, r"ids has shape \(\)"),
        (lambda: masks.Segments(IDS, jnp.array(1)).with_heads().array(3, 3), ValueError, r"key_ids has shape \(\)"),
        (lambda: masks.Lengths(2.5).array(3, 3), TypeError, "lengths has dtype float32"),
        (lambda: masks.Causal(1.5).array(3, 3), TypeError, "offset has dtype float32"),
        (lambda: (masks.Causal() & PADDING).array(3, 3), ValueError, r"\(2, 4\).*3 queries.*mask\[:, None, :\]"),
        (lambda: (masks.Causal() & PADDING).array(3, 4), ValueError, r"\(2, 4\).*3 queries.*mask\[:, None, :\]"),
        (
            lambda: (masks.Segments(IDS) | jnp.ones((5, 3, 3), bool)).array(3, 3),
            ValueError,
            r"\(2, 3, 3\).*\(5, 3, 3\)",
        ),
        (lambda: attention_weights(HEADS[0, 0], masks.Segments(jnp.array(1))), ValueError, r"ids has shape \(\)"),
        (lambda: attention_weights(HEADS, PADDING), ValueError, r"write mask\[:, None, None, :\]"),
        (lambda: attention_weights(HEADS[0], PADDING), ValueError, r"write mask\[:, None, :\]"),
        (lambda: attention_weights(HEADS[0, 0], PADDING[0, :2]), ValueError, "give both the same batch"),
        (lambda: attend(PADDING), ValueError, r"\(2, 4\).*write mask\[:, None, None, :\]"),
        (lambda: attend(masks.Causal() & PADDING), ValueError, r"\(2, 4\).*write mask\[:, None, None, :\]"),
        (lambda: attend(masks.Causal() | jnp.ones((5, 3, 3), bool)), ValueError, r"\(5, 3, 3\).*write mask\[:, None\]"),
        (lambda: attend(masks.Lengths(jnp.zeros(3, int))), ValueError, r"\(3, 1, 3, 3\).*same batch"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.slow
@given(
    rows=st.integers(1, 4), columns=st.integers(1, 4), bq=st.integers(1, 5), bk=st.integers(1, 5),
    seed=st.integers(0, 2**31 - 1),
)  # fmt: skip
def test_a_block_with_an_unmasked_entry_is_never_skipped(rows, columns, bq, bk, seed):
    rng, T, S = np.random.default_rng(seed), rows * bq, columns * bk
    ids, key_ids = (jnp.asarray(rng.integers(0, 4, (2, n))) for n in (T, S))
    offset = jnp.asarray(rng.integers(-3, 4, 2))
    mask = masks.SlidingWindow(int(rng.integers(1, 6)), offset, right=int(rng.integers(0, 4)))
    mask &= masks.Chunked(int(rng.integers(1, 9)), offset) | masks.Prefix(int(rng.integers(0, 3)))
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
    chunks = jax.tree.map(lambda leaf: leaf.reshape(1, 1, 1, 1), masks.Chunked(4).expanded(8, 8))
    expected = np.kron(np.eye(2), np.ones((2, 2))).astype(bool)
    np.testing.assert_array_equal(chunks.block_mask(queries, keys), expected)
    streaming = masks.Causal() & (masks.SlidingWindow(2) | masks.Prefix(1))
    streaming = jax.tree.map(lambda leaf: leaf.reshape(1, 1, 1, 1), streaming.expanded(8, 8))
    expected = np.tril(np.ones((4, 4), bool)) & ~np.tril(np.ones((4, 4), bool), -2)
    expected[:, 0] = True
    np.testing.assert_array_equal(streaming.block_mask(queries, keys), expected)


def test_ids_of_queries_and_keys_may_be_integers_of_different_widths():
    mask = masks.Segments(jnp.array([0, 1]), jnp.array([1, 0, 1], jnp.uint8))
    assert mask.array(2, 3).tolist() == [[False, True, False], [True, False, True]]
