import numpy as np
import pytest
from text_files import write

from jaxattn.training.text import make_corpus


def test_the_last_tenth_of_each_file_is_held_out(tmp_path):
    a, b = write(tmp_path / "a", range(200)), write(tmp_path / "b", b"\xff\xfe" * 50)  # need not be UTF-8
    corpus = make_corpus([a, b], context_length=8)
    assert bytes(corpus.train.read(0, 999)[0].tolist()) == bytes(range(180)) + b"\xff\xfe" * 45
    assert bytes(corpus.held_out.read(0, 999)[0].tolist()) == bytes(range(180, 200)) + b"\xff\xfe" * 5
    assert list(np.flatnonzero(corpus.train.read(0, 999)[1])) == [0, 180]


def test_too_little_text_is_refused_with_how_much_is_needed(tmp_path):
    (tmp_path / "short").write_bytes(b"too short")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("short", "empty"):
        with pytest.raises(ValueError, match=r"bytes, but with a context of 64.*about 650"):
            make_corpus([tmp_path / name], context_length=64)
    with pytest.raises(IsADirectoryError):
        make_corpus([tmp_path], context_length=64)
    with pytest.raises(FileNotFoundError):
        make_corpus([tmp_path / "none"], context_length=64)
