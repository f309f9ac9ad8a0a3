"""One matrix, or one for each head, as a matplotlib figure."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax import Array

from jaxattn.cli import printable
from jaxattn.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Entries of matrices up to this size are labelled with their numbers; larger matrices are read by colour.
LARGEST_LABELLED = 12
COLOUR_MAPS = {"scores": "RdBu_r", "weights": "viridis", "values": "RdBu_r"}


def plot_matrix(
    array: Array,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str = "",
    kind: str = "weights",
    mask: Array | None = None,
    axes: tuple[str, str] = ("", ""),
) -> "Figure":
    """Draw a matrix `(T, S)`, or one for each head, `(H, T, S)`.

    Args:
        array: the numbers.
        rows: T labels.
        columns: S labels.
        title: stands above.
        kind: "weights", coloured from 0; "scores" or "values", coloured around 0.
        mask: `(T, S)`; False hatches an entry.
        axes: names of rows and columns, such as "query" and "key".

    Returns:
        A figure, which notebooks show; `savefig` writes PNG, SVG or PDF.

    Raises:
        ValueError: labels and array disagree, or the kind is unknown.
        ImportError: matplotlib is not installed.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn.guide.matrix_plot import plot_matrix
        >>> figure = plot_matrix(jnp.eye(2), ["a", "b"], ["a", "b"], title="Weights")
        >>> len(figure.axes)  # the matrix and its colour bar
        2
    """
    if kind not in COLOUR_MAPS:
        raise ValueError(f"kind={kind!r} is unknown: write 'weights', 'scores' or 'values'")
    heads = _masked_heads(array, (len(rows), len(columns)), mask)
    figure, panels = _panels(*heads.shape)
    largest = float(np.abs(heads.filled(0)).max()) or 1.0
    for number, (panel, head) in enumerate(zip(panels, heads, strict=True)):
        image = panel.imshow(head, cmap=COLOUR_MAPS[kind], vmin=0 if kind == "weights" else -largest, vmax=largest)
        panel.set(ylabel=visible(axes[0]) if number == 0 else "", xlabel=visible(axes[1]))
        _label_axes(panel, rows, columns, f"head {number}" if len(heads) > 1 else "")
        _fill_entries(panel, head, image)
    figure.colorbar(image, ax=panels, shrink=0.8)
    figure.suptitle(visible(title))
    # The layout is computed once: computing it again when saving would move things a little.
    with ignore_missing_glyphs():
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def visible(text: str) -> str:
    """Escape control characters, which XML forbids, but not line breaks."""
    return "\n".join(map(printable, text.split("\n")))


@contextlib.contextmanager
def ignore_missing_glyphs() -> Iterator[None]:
    """Silence warnings about characters that the font lacks, such as emoji; boxes are drawn for them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def _masked_heads(array: Array, shape: tuple[int, int], mask: Array | None) -> np.ma.MaskedArray:
    """Return the array as `(H, T, S)`, without masked and infinite entries."""
    heads = np.asarray(array, np.float64).reshape(-1, *np.shape(array)[-2:])
    if heads.shape[1:] != shape:
        raise ValueError(f"array has shape {np.shape(array)}, but there are {shape[0]} rows and {shape[1]} columns")
    unmasked = np.isfinite(heads) & (True if mask is None else np.asarray(mask, bool))
    return np.ma.masked_array(heads, ~unmasked)


def _panels(H: int, T: int, S: int) -> tuple["Figure", list[Any]]:
    """Make a figure with a panel for each head."""
    side = 0.55 if max(T, S) <= LARGEST_LABELLED else 0.22
    size = (H * (side * S + 1.2) + 0.8, side * T + 1.4)
    figure = require("matplotlib.figure", extra="plot").Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(1, H, squeeze=False)[0])


def _label_axes(panel: Any, rows: Sequence[str], columns: Sequence[str], title: str) -> None:
    rows, columns = [visible(row) for row in rows], [visible(column) for column in columns]
    panel.set_title(title, fontsize=10)
    panel.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    panel.set_yticks(range(len(rows)), rows, parse_math=False)
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0, labelsize=9)


def _fill_entries(panel: Any, head: np.ma.MaskedArray, image: Any) -> None:
    """Hatch masked entries, and label the others in black on light colours and white on dark ones."""
    rectangle = require("matplotlib.patches", extra="plot").Rectangle
    for row, column in np.ndindex(head.shape):
        if np.ma.getmaskarray(head)[row, column]:
            corner = (column - 0.5, row - 0.5)
            panel.add_patch(rectangle(corner, 1, 1, fill=False, hatch="////", edgecolor="0.75", linewidth=0))
        elif max(head.shape) <= LARGEST_LABELLED:
            value = float(head[row, column])
            red, green, blue, _ = image.cmap(image.norm(value))
            colour = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
            text = f"{round(value, 2) + 0.0:.2f}"
            panel.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
