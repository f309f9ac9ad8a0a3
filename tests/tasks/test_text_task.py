from pathlib import Path

import pytest

from jaxattn.tasks.text import fingerprints, standard_library
from jaxattn.training.text import make_corpus


def test_the_default_text_is_a_few_megabytes_of_python():
    corpus = make_corpus(standard_library(), context_length=8)
    assert 1e6 < len(corpus.train) + len(corpus.held_out) < 1e7
    assert b"import" in bytes(corpus.train.read(0, 10**6)[0].astype("uint8"))


def test_different_texts_have_different_fingerprints(tmp_path):
    contents = [b"", b"a", b"b", b"a" * 300_000, b"a" * 299_999 + b"b", b"b" + b"a" * 299_999]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    prints = fingerprints([tmp_path / str(number) for number in range(len(contents))])
    assert len(set(prints)) == len(contents)


def test_a_stream_is_refused():
    with pytest.raises(OSError, match="no/such"):
        fingerprints([Path("no/such")])
    with pytest.raises(ValueError, match="is a stream"):
        fingerprints([Path("/dev/null")])
