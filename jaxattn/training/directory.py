"""A run's directory: which run it holds, and whether this one may write there."""

import dataclasses
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from jaxattn.training.config import TrainConfig
from jaxattn.training.saving import CONFIGURATION, PARAMETERS, prepare_directory, write_whole
from jaxattn.training.tokenizer import FILE as TOKENIZER

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE, CHECKPOINTS, TOKENS, LOCK = "run.json", "checkpoints", "tokens", ".lock"
EDGE = 2**16
# Directories that this process writes to, with the open files that keep others out.
_HELD: dict[Path, int] = {}


def fingerprints(files: Sequence[Path]) -> list[str]:
    """Return for each text its size and a hash of both ends: another text is told apart without reading it whole.

    Raises:
        OSError: a file cannot be read.
    """
    prints = []
    for file in files:
        with open(file, "rb") as source:
            size = os.fstat(source.fileno()).st_size
            if not stat.S_ISREG(os.fstat(source.fileno()).st_mode):
                raise ValueError(f"--text {file} is a stream, but is read here and there: write it to a file first")
            ends = source.read(EDGE)
            source.seek(max(0, size - EDGE))
            ends += source.read(EDGE)
        prints.append(f"{size}-{hashlib.sha256(ends).hexdigest()[:16]}")
    return prints


def saved_config(directory: str) -> TrainConfig:
    """Return the configuration of the run in a directory.

    Raises:
        OSError: there is none.
        ValueError: its file is damaged.
    """
    file = Path(directory) / FILE
    if not file.exists():
        raise FileNotFoundError(f"{directory} holds no run to go on with: leave --resume out, or name another --out")
    return _read(file)[0]


def open_directory(config: TrainConfig, texts: Sequence[str], resume: bool) -> Path:
    """Make the directory, or see that what it holds is this run, and write down which run it is.

    Args:
        config: the run; `config.out` is the directory.
        texts: the fingerprints of its texts.
        resume: whether the run in the directory is to go on.

    Raises:
        OSError: it cannot be made or written.
        ValueError: it holds something else, or a run that would be overwritten.
    """
    directory = prepare_directory(str(config.out))
    file, checkpoints = directory / FILE, directory / CHECKPOINTS
    begun = (checkpoints.is_dir() and any(checkpoints.iterdir())) or (directory / PARAMETERS).exists()
    if file.exists():
        _hold(directory)
        there, same_texts = _read(file)
        differences = there.differences(config)
        if same_texts != list(texts):
            differences.append("another --text, or one that has changed since")
        if not begun and (differences or not resume):
            # Nothing was learned yet that could be lost.
            shutil.rmtree(directory / TOKENS, ignore_errors=True)
            (directory / TOKENIZER).unlink(missing_ok=True)
        elif differences:
            raise ValueError(
                f"{directory} holds another run, with {', '.join(differences)}: leave that out to go on with it by "
                "--resume, or name another --out"
            )
        if begun and not resume:
            raise ValueError(
                f"{directory} holds this run already: add --resume to go on with it, or name another --out"
            )
    else:
        for name in (CHECKPOINTS, PARAMETERS, CONFIGURATION, TOKENIZER, TOKENS):
            if (directory / name).exists() and (name != CHECKPOINTS or begun):
                raise ValueError(
                    f"{directory} holds {name}, which no run of this script left there: name another --out"
                )
        _hold(directory)
    content = {"config": dataclasses.asdict(config), "texts": list(texts)}
    write_whole(file, json.dumps(content, indent=1).encode())
    return directory


def _hold(directory: Path) -> None:
    """Keep other processes out of the directory until this one ends, however it does."""
    if fcntl is None or directory in _HELD:
        return
    held = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(held)
        raise ValueError(
            f"{directory} is being written by another process: wait until it ends, or name another --out"
        ) from None
    except OSError:  # a file system without locks
        pass
    _HELD[directory] = held


def _read(file: Path) -> tuple[TrainConfig, list[str]]:
    try:
        content = json.loads(file.read_text())
        config = content["config"]
        return TrainConfig(**config | {"text": tuple(config["text"])}), content["texts"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged or no run's ({error}): name another --out") from error
