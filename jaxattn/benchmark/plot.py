"""The rows of attention as a picture: time, and memory where it was measured, over the length."""

import io
from pathlib import Path
from typing import Any

from jaxattn.benchmark.measure import Row
from jaxattn.extras import require
from jaxattn.files import write_whole

QUANTITIES = {"seconds": "seconds", "bytes": "extra bytes at the peak"}


def check_plot_file(file: Path) -> None:
    """Check that a picture can be drawn into such a file.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: the file's suffix names no format.
    """
    canvas = require("matplotlib.backend_bases", extra="bench").FigureCanvasBase
    if file.suffix[1:] not in canvas.get_supported_filetypes():
        raise ValueError(f"{file} must end in a picture format: write {file.stem}.png, .svg or .pdf")


def plot(rows: list[Row], file: Path) -> None:
    """Draw a column of panels for each direction and mask, with logarithmic axes.

    Raises:
        ImportError: matplotlib is missing.
        OSError: the file cannot be written.
        ValueError: the file's suffix names no format.
    """
    check_plot_file(file)
    columns = list(dict.fromkeys((row["direction"], row["mask"]) for row in rows))
    quantities = [quantity for quantity in QUANTITIES if any(row.get(quantity) for row in rows)]
    if not rows:
        return
    size = (4.5 * len(columns), 3.6 * len(quantities))
    figure = require("matplotlib.figure", extra="bench").Figure(figsize=size, layout="tight")
    grid = figure.subplots(len(quantities), len(columns), squeeze=False, sharex=True)
    for panels, quantity in zip(grid, quantities, strict=True):
        for panel, (direction, mask) in zip(panels, columns, strict=True):
            shown = [row for row in rows if (row["direction"], row["mask"]) == (direction, mask) and row.get(quantity)]
            _draw_lines(panel, shown, quantity, list(dict.fromkeys(row["name"] for row in rows)))
            panel.set(yscale="log", xlabel="tokens", ylabel=QUANTITIES[quantity], title=f"{direction}, {mask}")
            panel.set_xscale("log", base=2)
            panel.grid(alpha=0.3)
    grid[0][0].legend(fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format=file.suffix[1:])
    write_whole(file, picture.getvalue())


def _draw_lines(panel: Any, rows: list[Row], quantity: str, names: list[str]) -> None:
    """Draw one line for each candidate, in the same colour in every panel."""
    for number, name in enumerate(names):
        points = sorted((row["T"], row[quantity]) for row in rows if row["name"] == name)
        panel.plot([x for x, _ in points], [y for _, y in points], "o-", color=f"C{number}", label=name)
