"""The matrices of a trace or of a whole story as figures to publish."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxattn.extras import require
from jaxattn.files import write_whole
from jaxattn.guide.matrix_plot import ignore_missing_glyphs, plot_matrix
from jaxattn.guide.story import Story, stages_of
from jaxattn.guide.trace import Trace, trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_trace(steps: Trace, tokens: Sequence[str]) -> dict[str, "Figure"]:
    """Draw every matrix of a trace.

    Args:
        steps: from `trace`.
        tokens: a label for each token.

    Returns:
        Figures by the names of the trace's arrays.

    Raises:
        ValueError: there are not as many labels as tokens.
        ImportError: matplotlib is not installed.
    """
    return {name: _plot_array(steps, name, tokens, f"{steps.stage}: {name.replace('_', ' ')}") for name in steps.arrays}


def plot_story(story: Story) -> dict[str, "Figure"]:
    """Draw every matrix of the four stages, and the masked scores and weights of a trained model's layers."""
    figures: dict[str, Figure] = {}
    for stage, module, variables in stages_of(story):
        steps = trace(module, variables, story.inputs)
        figures |= {f"{stage}_{array}": figure for array, figure in plot_trace(steps, story.tokens).items()}
    for layer, steps in enumerate(story.layers):
        for array in ("masked", "weights"):
            figures[f"trained_{layer}_{array}"] = _plot_array(steps, array, story.tokens, f"layer {layer}: {array}")
    return figures


def save_plots(figures: dict[str, "Figure"], directory: Path) -> list[Path]:
    """Write each figure as PNG, SVG and PDF; the same figures give the same bytes.

    Raises:
        OSError: the directory cannot be written.
    """
    matplotlib, written = require("matplotlib", extra="plot"), []
    directory.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        for suffix, without_date in (("png", {}), ("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
            path = directory / f"{name}.{suffix}"
            picture = io.BytesIO()
            with ignore_missing_glyphs(), matplotlib.rc_context({"svg.hashsalt": "jaxattn"}):
                figure.savefig(picture, format=suffix, dpi=150, metadata=without_date)
            write_whole(path, picture.getvalue())
            written.append(path)
    return written


def _plot_array(steps: Trace, name: str, tokens: Sequence[str], title: str) -> "Figure":
    *_, rows, columns = steps.axes(name)
    labels = list(tokens) if columns == "key" else [str(number) for number in range(steps[name].shape[-1])]
    kind = "weights" if name in ("weights", "kept_weights", "mask") else "scores"
    is_masked = name in ("masked", "weights", "kept_weights") and "mask" in steps.arrays
    mask = steps["mask"] if is_masked else None
    return plot_matrix(steps[name], list(tokens), labels, title=title, kind=kind, mask=mask, axes=(rows, columns))
