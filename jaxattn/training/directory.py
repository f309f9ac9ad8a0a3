"""A run's directory: which run it holds, and whether this run may write there."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxattn.extras import require
from jaxattn.files import read_json, write_whole
from jaxattn.training.config import TrainConfig
from jaxattn.training.fingerprints import changes
from jaxattn.training.saving import CONFIGURATION, PARAMETERS, prepare_directory
from jaxattn.training.tokenizer import FILE as TOKENIZER

FILE, CHECKPOINTS, TOKENS, LOCK = "run.json", "checkpoints", "tokens", ".lock"
# The locks that this process holds until it ends.
_LOCKS: dict[Path, Any] = {}


def saved_config(directory: str) -> TrainConfig:
    """Return the configuration of the run in a directory.

    Raises:
        OSError: the directory holds no run.
        ValueError: the file is damaged.
    """
    file = Path(directory) / FILE
    if not file.exists():
        raise FileNotFoundError(f"{directory} holds no run to resume: leave --resume out, or name another --out")
    return _read(file)[0]


def saved_steps(directory: Path) -> list[int]:
    """Return the steps of the complete checkpoints in a run's directory, in order."""
    checkpoints = directory / CHECKPOINTS
    names = (path.name for path in checkpoints.iterdir() if path.is_dir()) if checkpoints.is_dir() else ()
    return sorted(int(name) for name in names if name.isdecimal())


def open_directory(config: TrainConfig, fingerprints: Sequence[str], resume: bool) -> None:
    """Create the run's directory, or check that it holds this run; lock it and write the configuration.

    Args:
        config: the run; `config.out` is the directory.
        fingerprints: identify the data of the run.
        resume: whether to resume the run in the directory.

    Raises:
        OSError: the directory cannot be created or written.
        ValueError: the directory holds something else, or a run that would be overwritten.
    """
    directory = prepare_directory(str(config.out))
    if (directory / FILE).exists():
        _lock(directory)
        _check_saved_run(directory, config, fingerprints, resume)
    else:
        _check_no_foreign_files(directory)
        _lock(directory)
    content = {"config": dataclasses.asdict(config), "texts": list(fingerprints)}
    write_whole(directory / FILE, json.dumps(content, indent=1).encode())


def _check_saved_run(directory: Path, config: TrainConfig, fingerprints: Sequence[str], resume: bool) -> None:
    saved, saved_fingerprints = _read(directory / FILE)
    differences = saved.differences(config)
    changed = changes(saved_fingerprints, fingerprints, config.text)
    has_trained = _has_checkpoints(directory) or (directory / PARAMETERS).exists()
    if not has_trained and (differences or changed or not resume):
        # Nothing has been learned that could be lost: this run takes the directory over.
        shutil.rmtree(directory / TOKENS, ignore_errors=True)
        (directory / TOKENIZER).unlink(missing_ok=True)
    elif differences or changed:
        advice = ["leave that out"] * bool(differences) + ["put the text back as it was"] * bool(changed)
        raise ValueError(
            f"{directory} holds another run, with {', '.join(differences + changed)}: {' and '.join(advice)} to "
            "continue it with --resume, or name another --out"
        )
    elif has_trained and not resume:
        raise ValueError(f"{directory} holds this run already: add --resume to continue it, or name another --out")


def _check_no_foreign_files(directory: Path) -> None:
    """Refuse a directory with files of the names that a run uses, but without a run."""
    for name in (CHECKPOINTS, PARAMETERS, CONFIGURATION, TOKENIZER, TOKENS):
        if (directory / name).exists() and (name != CHECKPOINTS or _has_checkpoints(directory)):
            raise ValueError(f"{directory} holds {name}, which no training run has left there: name another --out")


def _has_checkpoints(directory: Path) -> bool:
    checkpoints = directory / CHECKPOINTS
    return checkpoints.is_dir() and any(checkpoints.iterdir())


def _lock(directory: Path) -> None:
    """Keep other processes out of the directory until this one ends, in whatever way."""
    if directory in _LOCKS:
        return
    filelock = require("filelock", extra="train")
    lock = filelock.FileLock(directory / LOCK)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise ValueError(
            f"{directory} is in use by another training process: wait until it ends, or name another --out"
        ) from None
    except (NotImplementedError, OSError):  # a file system without locks
        return
    _LOCKS[directory] = lock


def _read(file: Path) -> tuple[TrainConfig, list[str]]:
    try:
        content = read_json(file)
        config, texts = content["config"], content["texts"]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("texts must hold fingerprints")
        return TrainConfig.of_json({"recipe": "gpt2"} | config), texts  # the only recipe of earlier versions
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is damaged, or was written by a version that this one cannot read ({error}): name another --out"
        ) from error
