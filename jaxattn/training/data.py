"""Open the run's directory and its data; of several processes, the main process writes and the others wait."""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

from jaxattn.tasks import Data, find_task
from jaxattn.training.config import TrainConfig
from jaxattn.training.directory import open_directory

Result = TypeVar("Result")


def open_data(config: TrainConfig, resume: bool) -> tuple[Data, Path | None]:
    """Open the run's directory, if there is one, and the task's data.

    Raises:
        OSError: a text cannot be read, or the directory cannot be written.
        ValueError: there is too little text, or the directory holds another run.
        ImportError: tokenizers is not installed.
    """
    task = find_task(config.task)
    fingerprints = task.fingerprints(config)
    directory = None if config.out is None else Path(config.out)
    if directory is not None:
        _main_process_first(lambda: open_directory(config, fingerprints, resume) if jax.process_index() == 0 else None)
    place = directory or _temporary_directory()
    return _main_process_first(lambda: task.open_data(config, place)), directory


def _temporary_directory() -> Path:
    """Make a directory that is removed when the program ends."""
    directory = Path(tempfile.mkdtemp(prefix="jaxattn-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _main_process_first(make: Callable[[], Result]) -> Result:
    """Call `make` in the main process, then in the others, which find the files that it wrote."""
    if jax.process_index() > 0:
        multihost_utils.sync_global_devices("main process first")
        return make()
    result = make()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("main process first")
    return result
