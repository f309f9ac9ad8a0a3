"""What models without single parts show beside the whole model: a sentence on each, a figure, a table."""

import math
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from jaxattn.extras import require
from jaxattn.files import write_whole
from jaxattn.training.config import TrainConfig
from jaxattn.training.evaluation import choices
from jaxattn.training.journal import finish_figure, write_figure

WHOLE, FIGURE, PAGE = "whole", "ablation", "ablation.md"
# A smaller difference between two held-out losses, in nats, could be that of another seed.
MARGIN = 0.02
# A model whose held-out loss is less than this above its training loss has hardly memorized the text.
MEMORIZED = 0.05
DROPOUT = 0.1  # for comparison, in a model that has none

# The figure's size, and the height of a line below it, in inches.
WIDTH, HEIGHT, LINE = 10.5, 4.5, 0.18


class Result(NamedTuple):
    """One of the trained models.

    Args:
        curve: held-out losses `(step, loss)`, from step 0.
        train_loss: the loss on training text at the end.
        cut_loss: the loss of the next token of held-out texts that end before it, in the middle of the context.
        sample: what the model writes after a held-out text.
        sample_loss: the bigram model's loss on the sample; None where there is none.
    """

    curve: list[tuple[int, float]]
    train_loss: float
    cut_loss: float
    sample: str
    sample_loss: float | None

    @property
    def loss(self) -> float:
        """The held-out loss at the end."""
        return self.curve[-1][1]


class Comparison(NamedTuple):
    """What was compared: the configuration of the whole model, and the finished results, by the part left out."""

    config: TrainConfig
    unit: str
    bigram: float | None
    prompt: str
    results: dict[str, Result]


def label(config: TrainConfig, part: str) -> str:
    """Name a model by what it does without."""
    return {
        WHOLE: "whole model",
        "causal": "without the causal mask",
        "scale": "without the scale 1/√D",
        "heads": f"with one head, not {config.heads}",
        "dropout": "without dropout" if config.dropout else f"with dropout {DROPOUT}",
        "positions": "without positions",
    }[part]


def sentence(comparison: Comparison, part: str) -> str:
    """Say what a model without a part shows, by its numbers.

    Example:
        >>> from jaxattn.training.comparison import Comparison, Result, sentence
        >>> from jaxattn.training.config import TrainConfig
        >>> whole, scale = (Result([(0, 5.6), (50, 2.5), (100, end)], 2.0, 2.1, "", None) for end in (2.1, 2.4))
        >>> results = {"whole": whole, "scale": scale}
        >>> print(sentence(Comparison(TrainConfig(), "byte", 2.5, "", results), "scale"))
        Without the scale 1/√D, the held-out loss after 100 steps is 2.40, not 2.10: like choosing among 11.0 bytes, \
not 8.17. The whole model was as good by step 100. Without it, scores of heads of width 32 are 5.7 times as large, \
so the softmax begins nearer to one-hot, where its gradient is small.
    """
    whole, other, unit = comparison.results[WHOLE], comparison.results[part], comparison.unit
    name = label(comparison.config, part)
    opening = (
        f"{name[0].upper()}{name[1:]}, the held-out loss after {other.curve[-1][0]} steps is {other.loss:.2f}, "
        + (
            f"as that of the whole model: like choosing among {choices(other.loss)} {unit}s."
            if f"{other.loss:.2f}" == f"{whole.loss:.2f}"
            else f"not {whole.loss:.2f}: like choosing among {choices(other.loss)} {unit}s, not {choices(whole.loss)}."
        )
    )
    explain = {"causal": _causal, "dropout": _dropout}.get(part, _other)
    return f"{opening} {explain(comparison, part)}"


def _causal(comparison: Comparison, part: str) -> str:
    whole, other, unit, bigram = *(comparison.results[name] for name in (WHOLE, part)), *comparison[1:3]
    if other.loss > whole.loss - MARGIN:
        return f"It could copy the {unit} that it must predict, which it attends to, but has not learned that yet."
    has_learned = other.cut_loss < whole.cut_loss + MARGIN
    above = f"the whole model's {whole.cut_loss:.2f}"
    if bigram is not None and other.cut_loss > bigram:
        above += f" and even the bigram model's {bigram:.2f}"
    words = (
        f"That is too good to be true: each position attends to the very {unit} that it must predict, and copies it. "
        f"On texts that end before that {unit}, "
    ) + (
        f"it predicts as well as the whole model, with a loss of {other.cut_loss:.2f}."
        if has_learned
        else f"its loss is {other.cut_loss:.2f}, above {above}: it has not learned to predict."
    )
    if other.sample_loss is None or whole.sample_loss is None or bigram is None:
        return words
    if other.sample_loss < max(bigram, whole.sample_loss) + 0.5:
        return f"{words} What it writes is as likely to the bigram model as other text."
    return (
        f"{words} So what it writes is bad: the bigram model's loss on it is {other.sample_loss:.2f}, on what the "
        f"whole model writes {whole.sample_loss:.2f}, and on held-out text {bigram:.2f}."
    )


def _dropout(comparison: Comparison, part: str) -> str:
    whole, other = (comparison.results[name] for name in (WHOLE, part))
    dropped, plain = (whole, other) if comparison.config.dropout else (other, whole)
    plain_gap, dropped_gap = (result.loss - result.train_loss for result in (plain, dropped))
    finding = "dropout makes no difference to that"
    if plain_gap < MEMORIZED:
        finding = "the model has hardly memorized anything that dropout could prevent"
    elif dropped_gap < plain_gap - MARGIN:
        finding = "dropout makes the model memorize less"
    return (
        f"The held-out loss lies {plain_gap:.2f} above the training loss without dropout, and {dropped_gap:.2f} with "
        f"it: {finding}."
    )


def _other(comparison: Comparison, part: str) -> str:
    whole, other, config = comparison.results[WHOLE], comparison.results[part], comparison.config
    if abs(other.loss - whole.loss) < MARGIN:
        return f"A difference below {MARGIN} could be that of another --seed: in this run the part makes none."
    if other.loss < whole.loss:
        return "In this run the model is better that way."
    width = config.width // config.heads
    reason = {
        "scale": f"Without it, scores of heads of width {width} are {math.sqrt(width):.1f} times as large, so the "
        "softmax begins nearer to one-hot, where its gradient is small.",
        "heads": f"One head of width {config.width} mixes the earlier tokens in one way for each position, "
        f"{config.heads} heads of width {width} in {config.heads} ways.",
        "positions": "Without them, what a token can tell of the order of those before it comes from the causal mask "
        "alone, by which each token attends to one more than the token before.",
    }[part]
    step = next(step for step, loss in whole.curve if loss <= other.loss)
    return f"The whole model was as good by step {step}. {reason}"


def sentences(comparison: Comparison) -> list[str]:
    """Return the sentences on all finished models, once the whole model is among them."""
    return [sentence(comparison, part) for part in comparison.results if part != WHOLE]


def draw_comparison(comparison: Comparison, directory: Path) -> None:
    """Draw the curves of all models to `ablation.png` and `ablation.svg`, over their sentences.

    Raises:
        OSError: the disk is full, or the directory cannot be written.
        ImportError: matplotlib is not installed.
    """
    caption = "\n".join("\n".join(textwrap.wrap(text, 150)) for text in sentences(comparison))
    lines = caption.count("\n") + 1 if caption else 0
    share = lines * LINE / (HEIGHT + lines * LINE)  # of the figure's height
    figure = require("matplotlib.figure", extra="train").Figure(
        figsize=(WIDTH, HEIGHT + lines * LINE), layout="constrained"
    )
    axes, late = figure.subplots(1, 2, width_ratios=(3, 2))
    for part, result in comparison.results.items():
        style = {"color": "black", "linewidth": 2} if part == WHOLE else {"linewidth": 1.5}
        name = f"{label(comparison.config, part)}: {result.loss:.2f}"
        for panel in (axes, late):
            panel.plot(*zip(*result.curve, strict=True), marker="o", markersize=3, label=name, **style)
    for panel in (axes, late):
        finish_figure(figure, panel, comparison.unit, comparison.bigram)
    axes.set_ylabel(f"held-out loss, nats per {comparison.unit}")
    _zoom(late, comparison)
    figure.get_layout_engine().set(rect=(0, share, 1, 1 - share))
    figure.text(0.015, share, caption, fontsize=9, verticalalignment="top", linespacing=1.25)
    write_figure(figure, directory / FIGURE)


def _zoom(axes: Any, comparison: Comparison) -> None:
    """Show the second half of the steps, and the losses near the whole model's then."""
    curve = comparison.results[WHOLE].curve
    steps, end = curve[-1][0], comparison.results[WHOLE].loss
    near = [
        loss
        for result in comparison.results.values()
        for step, loss in result.curve
        if step >= steps / 2 and abs(loss - end) < 0.5
    ]
    margin = 0.05 * (max(near) - min(near)) + 0.005
    axes.set_xlim(steps / 2, steps)
    axes.set_ylim(min(near) - margin, max(near) + margin)
    axes.set(ylabel=None, title="the second half, enlarged")
    axes.get_legend().remove()


def comparison_table(comparison: Comparison) -> str:
    """Return what the models reach and write, for the terminal."""
    unit, lines = comparison.unit, [f"what each model writes after the held-out text {comparison.prompt!r}:"]
    for part, result in comparison.results.items():
        numbers = f"held-out loss {result.loss:.2f}, like choosing among {choices(result.loss)} {unit}s"
        lines += [f"  {label(comparison.config, part)}: {numbers}", f"    {result.sample!r}"]
    return "\n".join(lines)


def write_page(comparison: Comparison, directory: Path) -> None:
    """Write the figure, the sentences and the samples as Markdown.

    Raises:
        OSError: the disk is full, or the directory cannot be written.
    """
    lines = ["# The same model without single parts", "", f"![The held-out losses]({FIGURE}.svg)", ""]
    lines += [f"- {text}" for text in sentences(comparison)]
    lines += [
        "",
        f"What each model writes, after {_code(comparison.prompt)}:",
        "",
        "| model | held-out loss | sample |",
    ]
    lines += ["| --- | --- | --- |"]
    for part, result in comparison.results.items():
        lines.append(f"| {label(comparison.config, part)} | {result.loss:.2f} | {_code(result.sample)} |")
    write_whole(directory / PAGE, "\n".join([*lines, ""]).encode())


def _code(text: str) -> str:
    """Return a text as it stands in a cell of a Markdown table."""
    return f"``  {repr(text)[1:-1]}  ``".replace("|", "\\|")
