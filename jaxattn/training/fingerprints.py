"""Tell whether a text is the one that a run was started with: its size, and hashes of its ends and of all of it."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxattn.files import check_input

EDGE = 2**16
# All cores hash chunks of this size: two cores hash two gigabytes in a few seconds.
CHUNK = 2**22


def fingerprints(files: Sequence[Path]) -> list[str]:
    """Return the fingerprint of each file, "SIZE-ENDS-WHOLE". Up to version 0.1.0, runs were saved without the last.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is a directory or a stream.
    """
    for file in files:
        check_input("--text", file)
    with ThreadPoolExecutor() as threads:
        return [_fingerprint(file, threads) for file in files]


def changes(saved: Sequence[str], found: Sequence[str], names: Sequence[str]) -> list[str]:
    """Describe what differs between the texts of a saved run and those found now; without names, they are Python's."""
    if len(saved) != len(found):
        return [f"a --text of {len(saved)} files, not {len(found)}"]
    labels = [f"--text {name}" for name in names] or ["Python's standard library as --text"] * len(found)
    described = [_change(before, now, label) for before, now, label in zip(saved, found, labels, strict=True)]
    return [change for change in described if change is not None][:1]


def _fingerprint(file: Path, threads: ThreadPoolExecutor) -> str:
    def hash_of_chunk(start: int) -> bytes:
        with open(file, "rb") as source:
            source.seek(start)
            return hashlib.sha256(source.read(CHUNK)).digest()

    size = file.stat().st_size
    with open(file, "rb") as source:
        ends = source.read(EDGE)
        source.seek(max(0, size - EDGE))
        ends += source.read(EDGE)
    whole = b"".join(threads.map(hash_of_chunk, range(0, size, CHUNK)))
    return f"{size}-{hashlib.sha256(ends).hexdigest()[:16]}-{hashlib.sha256(whole).hexdigest()[:16]}"


def _change(saved: str, found: str, name: str) -> str | None:
    """Say how a text has changed since its fingerprint was saved, None if it has not."""
    (size, *hashes), (size_now, *hashes_now) = saved.split("-"), found.split("-")
    if size != size_now:
        return f"{name}, which has {size_now} bytes now, not {size}"
    same = [before == now for before, now in zip(hashes, hashes_now, strict=False)]
    if saved == found or (same and all(same)):
        return None
    return f"{name}, which has changed since " + ("in its middle" if any(same) else "at its beginning or end")
