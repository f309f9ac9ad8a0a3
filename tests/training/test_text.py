import itertools

import numpy as np
import pytest

from jaxattn.training.text import batch, bigram_loss, load_corpus


def test_the_last_tenth_of_each_file_is_held_out(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(200)))
    (tmp_path / "b").write_bytes(b"\xff\xfe" * 50)  # no UTF-8, and none needed
    corpus = load_corpus([str(tmp_path / "a"), str(tmp_path / "b")], context_length=8)
    assert bytes(corpus.train) == bytes(range(180)) + b"\xff\xfe" * 45
    assert bytes(corpus.held_out) == bytes(range(180, 200)) + b"\xff\xfe" * 5


def test_the_default_is_a_few_megabytes_of_python():
    corpus = load_corpus([], context_length=8)
    assert 1e6 < len(corpus.train) + len(corpus.held_out) < 1e7
    assert b"import" in bytes(corpus.train)
    np.testing.assert_array_equal(corpus.train, load_corpus([], context_length=8).train)


def test_batches_follow_from_the_seed_and_reach_both_ends():
    text = np.arange(50, dtype=np.uint8)
    first, again, other = (batch(text, 400, 5, seed) for seed in [(0, 1), (0, 1), (0, 2)])
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (np.diff(first, axis=1) == 1).all()
    assert (first.min(), first.max()) == (0, 49)


def test_bigram_loss_is_that_of_counted_pairs():
    text, scored = b"abababac", b"abac"
    pairs = list(itertools.pairwise(text))
    expected = 0.0
    for a, b in itertools.pairwise(scored):
        expected -= np.log((pairs.count((a, b)) + 1) / (sum(p == a for p, _ in pairs) + 256)) / 3
    came = bigram_loss(np.frombuffer(text, np.uint8), np.frombuffer(scored, np.uint8)[None])
    assert came == pytest.approx(expected)


def test_too_little_text_says_how_much_it_takes(tmp_path):
    (tmp_path / "short").write_bytes(b"too short")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("short", "empty"):
        with pytest.raises(ValueError, match=r"bytes, but with a context of 64.*about 650"):
            load_corpus([str(tmp_path / name)], context_length=64)
    with pytest.raises(IsADirectoryError):
        load_corpus([str(tmp_path)], context_length=64)
    with pytest.raises(FileNotFoundError):
        load_corpus([str(tmp_path / "none")], context_length=64)
