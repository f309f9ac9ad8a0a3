import time

import numpy as np
import pytest
from text_files import whole_text, write

from jaxattn.training.batches import batch_positions, make_batch, prefetch


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_batches_follow_from_the_seed_and_reach_both_ends(tmp_path, dtype):
    text = whole_text(write(tmp_path / "text", range(50), dtype), dtype=dtype)
    first, again, other = (make_batch(text, 400, 5, seed) for seed in [(0, 1), (0, 1), (0, 2)])
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert (first.tokens != other.tokens).any()
    assert (np.diff(first.tokens, axis=1) == 1).all()
    assert (first.tokens.min(), first.tokens.max()) == (0, 49)
    assert first.documents is None  # there is only one document


def test_document_ids_change_where_the_document_does(tmp_path):
    files = [
        write(tmp_path / name, [letter] * number) for name, letter, number in [("a", 1, 7), ("b", 2, 3), ("c", 3, 9)]
    ]
    batch = make_batch(whole_text(*files), 200, 6, (0, 1))
    for tokens, documents in zip(batch.tokens, batch.documents, strict=True):
        assert documents[0] == 1
        assert (np.diff(tokens) == np.diff(documents)).all()


def test_sequences_start_at_a_document_and_end_with_padding(tmp_path):
    end = 9
    text = whole_text(write(tmp_path / "text", [1, end, 2, 2, end, 3, 3, 3, end] * 4), eos_token=end)
    batch = make_batch(text, 300, 6, (0, 1))
    padded = 0
    for tokens, documents in zip(batch.tokens, batch.documents, strict=True):
        real = documents > 0
        padded += not real.all()
        assert (tokens[~real] == 0).all()
        assert (np.diff(real.astype(int)) <= 0).all()  # padding is at the end
        expected = [1 + list(tokens[:t]).count(end) for t in range(len(tokens))]
        np.testing.assert_array_equal(documents[real], np.array(expected)[real])
        # A sequence starts right after EOS; in this text, the first token of a document is its length.
        assert list(tokens[:2]) in ([1, end], [2, 2], [3, 3])
    assert 0 < padded < 300


def test_a_sequence_is_full_wherever_it_starts_unless_the_text_ends(tmp_path):
    """A document may begin at its last position, so that twice the length must be read."""
    end, length = 9, 6
    text = whole_text(write(tmp_path / "text", [1, 1, 1, 1, 1, end] * 20), eos_token=end)
    batch, starts = (make(text, 300, length, (0, 1)) for make in (make_batch, batch_positions))
    assert set(starts) == set(range(0, len(text) - length + 1, 6))
    for start, tokens, documents in zip(starts, batch.tokens, batch.documents, strict=True):
        assert (documents > 0).all()
        np.testing.assert_array_equal(tokens, text.read(start, start + length)[0])


def test_prefetch_makes_the_next_result_while_the_caller_works_and_no_more():
    made = []

    def make(number):
        made.append(number)
        return number * number

    results = []
    for number, result in prefetch(make, range(3, 6)):
        time.sleep(0.05)
        results.append((number, result))
        assert made == list(range(3, min(number + 2, 6)))
    assert results == [(3, 9), (4, 16), (5, 25)]
    assert list(prefetch(make, range(3, 3))) == []
