"""A run's state on disk, by orbax: saved in the background, complete or not there, the last few and the best kept."""

import contextlib
import json
import logging
import shutil
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from jaxattn.extras import require
from jaxattn.training.saving import write_whole

LAST, SIGNATURE = 3, "_SUMS"


class Checkpoints:
    """The checkpoints of a run, in directories named by their steps.

    Raises:
        OSError: the directory cannot be written.
        ImportError: orbax-checkpoint is not installed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self._orbax = orbax = require("orbax.checkpoint", extra="train")
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # what matters of what orbax says is raised as well
        policies = orbax.checkpoint_managers
        held_out = lambda metrics: metrics["held_out_loss"]  # noqa: E731
        kept = policies.AnyPreservationPolicy(
            [
                policies.LatestN(LAST),
                policies.BestN(get_metric_fn=held_out, reverse=True, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        options = orbax.CheckpointManagerOptions(
            best_fn=held_out,
            best_mode="min",
            keep_checkpoints_without_metrics=False,
            preservation_policy=kept,
            cleanup_tmp_directories=True,
        )
        handlers = {"state": orbax.StandardCheckpointHandler()}
        self._manager = orbax.CheckpointManager(self.directory, options=options, item_handlers=handlers)
        self._background = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, from first to last; one that is being written is none."""
        return sorted(step for step in self._manager.all_steps() if (self.directory / str(step)).is_dir())

    def save(self, step: int, state: Any, held_out_loss: float | None) -> None:
        """Begin to save; errors of the last time are raised now.

        Raises:
            OSError: what was begun before could not be written.
        """
        self.wait()
        # The next step takes its state over, so what is being written is a copy.
        copy = jax.tree.map(jnp.copy, state)
        metrics = None if held_out_loss is None else {"held_out_loss": held_out_loss}
        try:
            arguments = self._orbax.args.Composite(state=self._orbax.args.StandardSave(copy))
            self._manager.save(step, args=arguments, metrics=metrics, force=True)
        except Exception as error:
            raise self._failed(error) from error
        self._written = self._background.submit(self._finish)

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            OSError: it could not be.
        """
        try:
            if self._written is not None:
                self._written.result()
        except Exception as error:
            raise self._failed(error) from error

    def restore(self, step: int, like: Any) -> Any:
        """Return the state that was saved, laid out as `like`.

        Raises:
            ValueError: the checkpoint is damaged, or another model's.
        """
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        place = self.directory / str(step)
        try:
            _check_signature(place)
            # Orbax would find this out array by array, and leave the reading of the others to the garbage collector.
            if _sizes(self._manager.item_metadata(step)["state"]) != _sizes(shapes):
                raise ValueError("its arrays are of other shapes or types")
            arguments = self._orbax.args.Composite(state=self._orbax.args.StandardRestore(shapes))
            return self._manager.restore(step, args=arguments)["state"]
        except Exception as error:  # whatever orbax and its file formats stumble over
            reason = str(error).strip().partition("\n")[0][:200]
            raise ValueError(f"{place} is damaged or no checkpoint of this run ({reason})") from None

    def whole_before(self, step: int, like: Any) -> int | None:
        """Return the latest step before `step` whose checkpoint can be read."""
        for earlier in reversed([number for number in self.steps() if number < step]):
            try:
                self.restore(earlier, like)
            except ValueError:
                continue
            return earlier
        return None

    def forget_after(self, step: int) -> None:
        """Remove what lies beyond `step`, as the run goes on from there."""
        for later in [number for number in self.steps() if number > step]:
            if jax.process_index() == 0:
                shutil.rmtree(self.directory / str(later))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("forgotten")
        self._manager.reload()

    def close(self) -> None:
        """Let go of the directory, when what is being written is there."""
        self._background.shutdown()
        with contextlib.suppress(Exception):  # `wait` has told what went wrong
            self._manager.close()

    def _finish(self) -> None:
        """Wait until a checkpoint is complete, then write down the sums of its files."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()
        for place in self.directory.iterdir() if jax.process_index() == 0 else ():
            if place.name.isdecimal() and (place / "state").is_dir() and not (place / SIGNATURE).exists():
                write_whole(place / SIGNATURE, json.dumps(_sums(place)).encode())

    def _failed(self, error: Exception) -> OSError:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
        if "No space left" in str(error):
            reason = "no space left on the disk"
        return OSError(f"the run could not be saved in {self.directory} ({reason})")


def _check_signature(place: Path) -> None:
    """See that a checkpoint's files are as they were written, before anything is made of them."""
    if not (place / "state").is_dir():
        raise ValueError("no state is in it")
    if not (place / SIGNATURE).exists():
        return  # the run was killed at that moment; orbax checks what it reads
    wanted, came = json.loads((place / SIGNATURE).read_text()), _sums(place)
    for name in wanted.keys() | came.keys():
        if wanted.get(name) != came.get(name):
            raise ValueError(f"{name} is {'missing' if name not in came else 'not as it was written'}")


def _sizes(tree: Any) -> list[tuple[tuple[int, ...], str]]:
    return sorted((tuple(leaf.shape), str(leaf.dtype)) for leaf in jax.tree.leaves(tree))


def _sums(place: Path) -> dict[str, int]:
    files = (file for file in sorted(place.rglob("*")) if file.is_file() and file.name != SIGNATURE)
    return {str(file.relative_to(place)): zlib.crc32(file.read_bytes()) for file in files}
