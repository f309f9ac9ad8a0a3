"""The log of a run: one JSON line per record, TensorBoard scalars, and the loss curve."""

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

from jaxattn.extras import require
from jaxattn.files import write_whole

FILE = "log.jsonl"


class Journal:
    """Writes each record immediately, so that a run that is killed loses none; without a directory, writes nothing.

    A run that resumes from step `until` keeps the records up to it; one that starts, with `until=0`, keeps none.
    """

    def __init__(self, directory: Path | None, until: int, tensorboard: bool = False) -> None:
        self._file: Any = None
        self._board: Any = None
        if directory is None:
            return
        before = read_journal(directory) if until else []
        kept = [json.dumps(record) + "\n" for record in before if record["step"] <= until]
        write_whole(directory / FILE, "".join(kept).encode())
        self._file = open(directory / FILE, "a")  # noqa: SIM115
        if tensorboard:
            writer = require("tensorboardX", extra="tensorboard").SummaryWriter
            self._board = writer(str(directory / "tensorboard"), purge_step=until + 1)

    def write(self, step: int, **values: float | str) -> None:
        """Write values of a step; NaN and infinity become null."""
        if self._file is None:
            return
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._file.write(json.dumps({"step": step} | plain) + "\n")
        self._file.flush()
        for name, value in values.items() if self._board is not None else ():
            if isinstance(value, float):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files; `write` has already raised what went wrong."""
        for file in (self._file, self._board):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()


def read_journal(directory: Path) -> list[dict[str, Any]]:
    """Return the records of a run; skip lines that are not records, such as one that was cut off."""
    path, records = directory / FILE, []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, RecursionError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict) and isinstance(record.get("step"), int)]


def draw_curve(directory: Path, unit: str, bigram: float | None = None) -> None:
    """Plot the losses of a run to `loss.png` and `loss.svg`, beside that of the bigram model.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = require("matplotlib.figure", extra="train").Figure(figsize=(7, 4), layout="constrained")
    axes, records = figure.add_subplot(), read_journal(directory)
    for name, label, style in (
        ("loss", "training, each step", {"linewidth": 0.7, "alpha": 0.6}),
        ("held_out_loss", "held out", {"marker": "o", "markersize": 3}),
    ):
        points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    finish_figure(figure, axes, unit, bigram)
    write_figure(figure, directory / "loss")


def finish_figure(figure: Any, axes: Any, unit: str, bigram: float | None) -> None:
    """Name the axes of curves of losses, add the line of the bigram model, and a legend beside the curves."""
    if bigram is not None:
        label = f"bigram {bigram:.2f}, which knows only the current {unit}"
        axes.axhline(bigram, color="black", linewidth=1, linestyle="--", label=label)
    axes.set(xlabel="step", ylabel=f"loss, nats per {unit}")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def write_figure(figure: Any, path: Path) -> None:
    """Write a figure to `path.png` and `path.svg`; the same figure gives the same bytes.

    Raises:
        OSError: the disk is full, or the directory cannot be written.
    """
    with require("matplotlib", extra="train").rc_context({"svg.hashsalt": "jaxattn"}):
        for suffix, options in ((".png", {"dpi": 150}), (".svg", {"metadata": {"Date": None}})):
            picture = io.BytesIO()
            figure.savefig(picture, format=suffix[1:], **options)
            write_whole(path.with_name(path.name + suffix), picture.getvalue())
