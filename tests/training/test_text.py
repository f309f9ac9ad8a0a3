import itertools

import numpy as np
import pytest

from jaxattn.training.text import Batch, Stretch, Text, bigram_loss, make_batch, make_corpus, standard_library


def write(path, tokens, dtype="uint8"):
    path.write_bytes(np.array(list(tokens), dtype).tobytes())
    return path


def whole(*paths, dtype="uint8", separator=None):
    return Text(
        tuple(Stretch(path, dtype, 0, path.stat().st_size // np.dtype(dtype).itemsize) for path in paths), separator
    )


def test_the_last_tenth_of_each_file_is_held_out(tmp_path):
    a, b = write(tmp_path / "a", range(200)), write(tmp_path / "b", b"\xff\xfe" * 50)  # no UTF-8, and none needed
    corpus = make_corpus([a, b], context_length=8)
    assert bytes(corpus.train.read(0, 999)[0].tolist()) == bytes(range(180)) + b"\xff\xfe" * 45
    assert bytes(corpus.held_out.read(0, 999)[0].tolist()) == bytes(range(180, 200)) + b"\xff\xfe" * 5
    assert list(np.flatnonzero(corpus.train.read(0, 999)[1])) == [0, 180]


def test_the_default_is_a_few_megabytes_of_python():
    corpus = make_corpus(standard_library(), context_length=8)
    assert 1e6 < len(corpus.train) + len(corpus.held_out) < 1e7
    assert b"import" in bytes(corpus.train.read(0, 10**6)[0].astype(np.uint8))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_batches_follow_from_the_seed_and_reach_both_ends(tmp_path, dtype):
    text = whole(write(tmp_path / "text", range(50), dtype), dtype=dtype)
    first, again, other = (make_batch(text, 400, 5, seed) for seed in [(0, 1), (0, 1), (0, 2)])
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert (first.tokens != other.tokens).any()
    assert (np.diff(first.tokens, axis=1) == 1).all()
    assert (first.tokens.min(), first.tokens.max()) == (0, 49)
    assert first.documents is None  # there is one document only


def test_sequences_tell_the_documents_that_they_reach_into(tmp_path):
    files = [
        write(tmp_path / name, [letter] * number) for name, letter, number in [("a", 1, 7), ("b", 2, 3), ("c", 3, 9)]
    ]
    batch = make_batch(whole(*files), 200, 6, (0, 1))
    for tokens, documents in zip(batch.tokens, batch.documents, strict=True):
        assert documents[0] == 1
        assert (np.diff(tokens) == np.diff(documents)).all()


def test_sequences_begin_with_a_document_and_end_in_padding(tmp_path):
    end = 9
    text = whole(write(tmp_path / "text", [1, end, 2, 2, end, 3, 3, 3, end] * 4), separator=end)
    batch = make_batch(text, 300, 6, (0, 1))
    padded = 0
    for tokens, documents in zip(batch.tokens, batch.documents, strict=True):
        real = documents > 0
        padded += not real.all()
        assert (tokens[~real] == 0).all()
        assert (np.diff(real.astype(int)) <= 0).all()  # padding stands behind
        expected = [1 + list(tokens[:t]).count(end) for t in range(len(tokens))]
        np.testing.assert_array_equal(documents[real], np.array(expected)[real])
        # After the separator a document counts up: its first token says how long it is.
        assert list(tokens[:2]) in ([1, end], [2, 2], [3, 3])
    assert 0 < padded < 300


@pytest.mark.parametrize("packed", [False, True])
def test_bigram_loss_is_that_of_counted_pairs(tmp_path, packed):
    text, scored = b"abababac", b"abac"
    pairs = list(itertools.pairwise(text))
    documents = np.array([[1, 1, 2, 2]]) if packed else None
    losses = [
        -np.log((pairs.count(pair) + 1) / (sum(p == pair[0] for p, _ in pairs) + 256))
        for pair in itertools.pairwise(scored)
    ]
    expected = (losses[0] + losses[2]) / 2 if packed else np.mean(losses)
    batch = Batch(np.frombuffer(scored, np.uint8)[None], documents)
    assert bigram_loss(whole(write(tmp_path / "text", text)), batch, 256) == pytest.approx(expected)


def test_a_large_vocabulary_has_no_bigram_loss(tmp_path):
    assert bigram_loss(whole(write(tmp_path / "text", b"abc")), Batch(np.zeros((1, 3), int)), 50257) is None


def test_too_little_text_says_how_much_it_takes(tmp_path):
    (tmp_path / "short").write_bytes(b"too short")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("short", "empty"):
        with pytest.raises(ValueError, match=r"bytes, but with a context of 64.*about 650"):
            make_corpus([tmp_path / name], context_length=64)
    with pytest.raises(IsADirectoryError):
        make_corpus([tmp_path], context_length=64)
    with pytest.raises(FileNotFoundError):
        make_corpus([tmp_path / "none"], context_length=64)
