from pathlib import Path

import pytest

from jaxattn.training.fingerprints import CHUNK, changes, fingerprints


def test_a_text_that_changes_anywhere_has_another_fingerprint(tmp_path):
    size, prints = 2 * CHUNK + 100, set()
    for place in (0, 2**16, CHUNK - 1, CHUNK, 2 * CHUNK, size - 1, None):
        content = bytearray(size)
        if place is not None:
            content[place] = 1
        (tmp_path / "text").write_bytes(content)
        prints |= set(fingerprints([tmp_path / "text"]))
    assert len(prints) == 7


def test_texts_of_no_or_one_byte_have_fingerprints(tmp_path):
    for name, content in {"empty": b"", "a": b"a", "b": b"b"}.items():
        (tmp_path / name).write_bytes(content)
    assert len(set(fingerprints([tmp_path / name for name in ("empty", "a", "b")]))) == 3


@pytest.mark.parametrize(
    ("saved", "found", "expected"),
    [
        (["9-a-b"], ["9-a-b"], []),
        (["9-a"], ["9-a-b"], []),  # of version 0.1.0
        (["9-a-b"], ["8-c-d"], ["--text t.txt, which has 8 bytes now, not 9"]),
        (["9-a-b"], ["9-a-c"], ["--text t.txt, which has changed since in its middle"]),
        (["9-a-b"], ["9-c-d"], ["--text t.txt, which has changed since at its beginning or end"]),
        (["9-a"], ["9-c-d"], ["--text t.txt, which has changed since at its beginning or end"]),
        (["9-a-b", "7-e-f"], ["9-a-b"], ["a --text of 2 files, not 1"]),
        (["damaged"], ["9-a-b"], ["--text t.txt, which has 9 bytes now, not damaged"]),
    ],
)
def test_what_changed_in_a_text_is_said(saved, found, expected):
    assert changes(saved, found, ["t.txt"]) == expected


def test_a_changed_default_text_is_named_once():
    assert changes(["1-a", "1-b", "1-c"], ["1-a", "2-b", "2-c"], ()) == [
        "Python's standard library as --text, which has 2 bytes now, not 1"
    ]


def test_a_stream_is_refused():
    with pytest.raises(OSError, match="no/such"):
        fingerprints([Path("no/such")])
    with pytest.raises(ValueError, match="is a stream"):
        fingerprints([Path("/dev/null")])
