"""A stage's matrices as figures to publish: scores, mask, weights for each head, context vectors."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array

from jaxattn.extras import require
from jaxattn.guide.trace import Trace

# Numbers stand in the cells of matrices up to this size; larger ones are read by their colours.
NUMBERED = 12
MAPS = {"scores": "RdBu_r", "weights": "viridis", "values": "RdBu_r"}


def plot_matrix(
    array: Array,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str = "",
    kind: str = "weights",
    mask: Array | None = None,
    axes: tuple[str, str] = ("", ""),
) -> Any:
    """Draw one matrix, or one for each head, as a matplotlib figure.

    Args:
        array: `(T, S)`, or `(H, T, S)`.
        rows: T labels.
        columns: S labels.
        title: stands above.
        kind: "weights" from 0 in viridis; "scores" or "values" around 0 in two colours.
        mask: `(T, S)`, True where a cell counts; the others are hatched.
        axes: what rows and columns are, "query" and "key" say.

    Returns:
        A `matplotlib.figure.Figure`; in a notebook it shows itself, `savefig` writes PNG, SVG or PDF.

    Raises:
        ValueError: labels and array disagree, or the kind is not known.
        ImportError: matplotlib is not installed.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn.guide.plots import plot_matrix
        >>> figure = plot_matrix(jnp.eye(2), ["a", "b"], ["a", "b"], title="Weights")
        >>> len(figure.axes)  # the matrix and its colours
        2
    """
    heads = np.asarray(array, np.float64).reshape(-1, *np.shape(array)[-2:])
    if heads.shape[1:] != (len(rows), len(columns)):
        raise ValueError(
            f"array has shape {np.shape(array)}, but there are {len(rows)} rows and {len(columns)} columns"
        )
    if kind not in MAPS:
        raise ValueError(f"kind={kind!r} is not known: write 'weights', 'scores' or 'values'")
    shown = np.isfinite(heads) & (True if mask is None else np.asarray(mask, bool))
    most = float(np.abs(np.where(shown, heads, 0)).max()) or 1.0
    T, S = heads.shape[1:]
    cell = 0.55 if max(T, S) <= NUMBERED else 0.22
    size = (len(heads) * (cell * S + 1.2) + 0.8, cell * T + 1.4)
    figure = require("matplotlib.figure", extra="plot").Figure(figsize=size, layout="constrained")
    every = figure.subplots(1, len(heads), squeeze=False)[0]
    for number, place in enumerate(every):
        values = np.ma.masked_array(heads[number], ~shown[number])
        image = place.imshow(values, cmap=MAPS[kind], vmin=0 if kind == "weights" else -most, vmax=most)
        place.set(ylabel=axes[0] if number == 0 else "", xlabel=axes[1])
        _label(place, rows, columns, f"head {number}" if len(heads) > 1 else "")
        _fill(place, heads[number], shown[number], image, max(T, S) <= NUMBERED)
    figure.colorbar(image, ax=list(every), shrink=0.8)
    figure.suptitle(title)
    # Laid out once: each saving would move things a little.
    with _letters_may_lack():
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def plot_trace(steps: Trace, tokens: Sequence[str]) -> dict[str, Any]:
    """Draw every matrix of a trace, as figures by name.

    Args:
        steps: from `trace`.
        tokens: a label for each token.

    Returns:
        Figures by the names of the trace's arrays.

    Raises:
        ValueError: there are not as many labels as tokens.
        ImportError: matplotlib is not installed.
    """
    figures = {}
    for name, array in steps.arrays.items():
        across = list(tokens) if steps.axes(name)[-1] == "key" else [str(n) for n in range(array.shape[-1])]
        kind = "weights" if name in ("weights", "dropped_weights", "mask", "kept") else "scores"
        hides = name in ("masked", "weights", "dropped_weights") and "mask" in steps.arrays
        title = f"{steps.stage}: {name.replace('_', ' ')}"
        mask = steps["mask"] if hides else None
        axes = (steps.axes(name)[-2], steps.axes(name)[-1])
        figures[name] = plot_matrix(array, list(tokens), across, title=title, kind=kind, mask=mask, axes=axes)
    return figures


def save_plots(figures: dict[str, Any], directory: Path) -> list[Path]:
    """Write each figure as PNG, SVG and PDF; the same figures give the same bytes.

    Raises:
        OSError: the directory cannot be written.
    """
    matplotlib, written = require("matplotlib", extra="plot"), []
    directory.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        for form, dateless in (("png", {}), ("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
            path = directory / f"{name}.{form}"
            with _letters_may_lack(), matplotlib.rc_context({"svg.hashsalt": "jaxattn"}):
                figure.savefig(path, dpi=150, metadata=dateless)
            written.append(path)
    return written


@contextlib.contextmanager
def _letters_may_lack() -> Iterator[None]:
    """Draw boxes for what the font lacks (emoji, say) without a word."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def _label(axes: Any, rows: Sequence[str], columns: Sequence[str], title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9)


def _fill(axes: Any, values: np.ndarray, shown: np.ndarray, image: Any, numbered: bool) -> None:
    """Hatch what is hidden, and write numbers in what is not, dark on light and light on dark."""
    patches = require("matplotlib.patches", extra="plot")
    for (row, column), value in np.ndenumerate(values):
        if not shown[row, column]:
            corner = (column - 0.5, row - 0.5)
            axes.add_patch(patches.Rectangle(corner, 1, 1, fill=False, hatch="////", edgecolor="0.75", linewidth=0))
        elif numbered:
            red, green, blue, _ = image.cmap(image.norm(value))
            colour = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
            axes.text(
                column, row, f"{round(float(value), 2) + 0.0:.2f}", ha="center", va="center", fontsize=8, color=colour
            )
