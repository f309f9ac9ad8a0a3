"""Checkpoints of the training state, written by orbax in the background; the last few and the best are kept."""

import contextlib
import json
import logging
import shutil
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxattn.extras import require
from jaxattn.files import write_whole

State = TypeVar("State")
KEPT, SIGNATURE = 3, "_SUMS"
# Whether a process has written its part, and the seconds between asking the others.
RUNNING, WRITTEN, FAILED, POLL = 0, 1, 2, 0.02
# Why files cannot be written: what the system says, somewhere in a long message of orbax, and what it means.
REASONS = {
    "No space left": "no space left on the disk",
    "quota exceeded": "the disk quota is used up",
    "File too large": "a file would be larger than this process may write",
}


class OtherProcessError(RuntimeError):
    """Another training process has failed."""


class Checkpoints:
    """The checkpoints of a run, in directories named by their steps. A checkpoint is complete, or does not count.

    Raises:
        OSError: the directory cannot be written.
        ImportError: orbax-checkpoint is not installed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self._orbax = orbax = require("orbax.checkpoint", extra="train")
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax also raises what matters
        policies = orbax.checkpoint_managers
        held_out = lambda metrics: metrics["held_out_loss"]  # noqa: E731
        kept = policies.AnyPreservationPolicy(
            [
                policies.LatestN(KEPT),
                policies.BestN(get_metric_fn=held_out, reverse=True, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        options = orbax.CheckpointManagerOptions(
            best_fn=held_out,
            best_mode="min",
            keep_checkpoints_without_metrics=False,
            preservation_policy=kept,
            cleanup_tmp_directories=True,
            async_options=orbax.AsyncOptions(
                barrier_sync_fn=_wait_unless_failed(orbax.multihost.get_barrier_sync_fn())
            ),
        )
        handlers = {"state": orbax.StandardCheckpointHandler()}
        self._manager = orbax.CheckpointManager(self.directory, options=options, item_handlers=handlers)
        self._background = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, in order; one that is being written does not count yet."""
        return sorted(step for step in self._manager.all_steps() if (self.directory / str(step)).is_dir())

    def save(self, step: int, state: Any, held_out_loss: float | None) -> None:
        """Start saving in the background.

        Raises:
            OSError: the checkpoint before could not be written.
        """
        self.wait()
        # The next step donates its state, so save a copy.
        copy = jax.tree.map(jnp.copy, state)
        metrics = None if held_out_loss is None else {"held_out_loss": held_out_loss}
        try:
            arguments = self._orbax.args.Composite(state=self._orbax.args.StandardSave(copy))
            self._manager.save(step, args=arguments, metrics=metrics, force=True)
        except Exception as error:
            raise self._failed(error) from error
        self._written = self._background.submit(self._finish)

    def wait(self) -> None:
        """Wait until the checkpoint is written, in all processes, each of which must call this.

        Raises:
            OSError: it could not be written.
            OtherProcessError: another process could not write it.
        """
        try:
            if self._written is not None:
                _wait_together(self._written)
                self._written.result()
        except OtherProcessError:
            raise
        except Exception as error:
            raise self._failed(error) from error

    def restore(self, step: int, like: State) -> State:
        """Return the saved state, sharded as `like`.

        Raises:
            ValueError: the checkpoint is damaged, or belongs to another model.
        """
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        path = self.directory / str(step)
        try:
            _check_signature(path)
            # Orbax would only fail in the middle of reading, and leave the rest to the garbage collector.
            if _shapes(self._manager.item_metadata(step)["state"]) != _shapes(shapes):
                raise ValueError("its arrays have other shapes or types")
            arguments = self._orbax.args.Composite(state=self._orbax.args.StandardRestore(shapes))
            restored: State = self._manager.restore(step, args=arguments)["state"]
            return restored
        except Exception as error:  # orbax and its file formats raise many types
            reason = str(error).strip().partition("\n")[0][:200]
            raise ValueError(f"{path} is damaged or not a checkpoint of this run ({reason})") from None

    def last_intact_before(self, step: int, like: Any) -> int | None:
        """Return the latest step before `step` whose checkpoint can be read."""
        for earlier in reversed([number for number in self.steps() if number < step]):
            try:
                if jax.process_count() == 1:
                    self.restore(earlier, like)
                else:  # the others may not come to read with this one
                    _check_signature(self.directory / str(earlier))
            except ValueError:
                continue
            return earlier
        return None

    def delete_after(self, step: int) -> None:
        """Delete the checkpoints after `step`, from which the run resumes."""
        for later in [number for number in self.steps() if number > step]:
            if jax.process_index() == 0:
                shutil.rmtree(self.directory / str(later))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints deleted")
        self._manager.reload()

    def close(self) -> None:
        """Finish writing and release the directory."""
        self._background.shutdown()
        with contextlib.suppress(Exception):  # `wait` has raised it
            self._manager.close()

    def _finish(self) -> None:
        """Wait until a checkpoint is complete, then save the checksums of its files."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()
        for path in self.directory.iterdir() if jax.process_index() == 0 else ():
            if path.name.isdecimal() and (path / "state").is_dir() and not (path / SIGNATURE).exists():
                write_whole(path / SIGNATURE, json.dumps(_checksums(path)).encode())

    def _failed(self, error: Exception) -> OSError:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
        reason = next((meaning for said, meaning in REASONS.items() if said in str(error)), reason)
        return OSError(f"the run could not be saved in {self.directory} ({reason})")


def _wait_together(written: Future[None]) -> None:
    """Wait until all processes have written, or one has failed; orbax would wait for that one for many minutes."""
    while jax.process_count() > 1:
        state = RUNNING if not written.done() else FAILED if written.exception() else WRITTEN
        states = multihost_utils.process_allgather(np.array(state))
        if state == FAILED or (states == WRITTEN).all():
            return
        if (states == FAILED).any():
            raise OtherProcessError("another training process could not save the run")
        time.sleep(POLL)


def _wait_unless_failed(wait: Callable[..., None]) -> Callable[..., None]:
    """Return a barrier for orbax's threads that an error passes by.

    After an error in one process, orbax first waits there for the others, which wait for that process elsewhere: for
    20 minutes nobody would hear of the error.
    """

    def barrier(**settings: Any) -> None:
        error = sys.exception()
        if error is not None:
            raise error
        wait(**settings)

    return barrier


def _check_signature(path: Path) -> None:
    """Check that the files of a checkpoint are as they were written."""
    if not (path / "state").is_dir():
        raise ValueError("it has no state")
    if not (path / SIGNATURE).exists():
        return  # the run was killed before they were saved; orbax checks what it reads
    expected, found = json.loads((path / SIGNATURE).read_text()), _checksums(path)
    for name in expected.keys() | found.keys():
        if expected.get(name) != found.get(name):
            raise ValueError(f"{name} is {'missing' if name not in found else 'not as it was written'}")


def _shapes(tree: Any) -> list[tuple[tuple[int, ...], str]]:
    return sorted((tuple(leaf.shape), str(leaf.dtype)) for leaf in jax.tree.leaves(tree))


def _checksums(path: Path) -> dict[str, int]:
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != SIGNATURE)
    return {str(file.relative_to(path)): zlib.crc32(file.read_bytes()) for file in files}
