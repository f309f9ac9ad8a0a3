from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import CausalAttention, MultiHeadAttention
from jaxattn.guide.matrix_plot import plot_matrix
from jaxattn.guide.plots import plot_trace, save_plots
from jaxattn.guide.story import random_story
from jaxattn.guide.trace import trace

pytest.importorskip("matplotlib", reason="draws: install the extra plot")
X, TOKENS = jax.random.normal(jax.random.key(0), (4, 3)), ["a", "$b$", "cc", "🦊"]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_entries_show_their_numbers_and_masked_ones_are_hatched():
    weights = jnp.array([[1.0, 0.0], [0.25, 0.75]])
    figure = plot_matrix(weights, ["a", "b"], ["a", "b"], mask=jnp.tril(jnp.ones((2, 2), bool)))
    axes = figure.axes[0]
    assert texts(axes) == ["1.00", "0.25", "0.75"]
    assert [patch.get_hatch() for patch in axes.patches] == ["////"]
    np.testing.assert_array_equal(axes.images[0].get_array().filled(-1), [[1, -1], [0.25, 0.75]])
    assert axes.images[0].cmap.name == "viridis"


def test_scores_are_coloured_around_zero_and_large_matrices_bear_no_numbers():
    scores = jnp.linspace(-1, 3, 400).reshape(20, 20)
    axes = plot_matrix(scores, ["t"] * 20, ["t"] * 20, kind="scores").axes[0]
    assert axes.images[0].get_clim() == (-3, 3)
    assert texts(axes) == []


@pytest.mark.parametrize("module", [CausalAttention(2, 0.5), MultiHeadAttention(2, 4)], ids=lambda m: type(m).__name__)
def test_every_array_of_a_trace_is_drawn_for_every_head(module):
    steps = trace(module, module.init(jax.random.key(1), X), X, jax.random.key(2))
    figures = plot_trace(steps, TOKENS)
    assert list(figures) == list(steps.arrays)
    heads = 2 if isinstance(module, MultiHeadAttention) else 1
    assert len(figures["weights"].axes) == heads + 1
    assert [label.get_text() for label in figures["weights"].axes[0].get_yticklabels()] == TOKENS


def test_figures_are_saved_in_three_formats_with_the_same_bytes_every_time(tmp_path):
    figures = {"weights": plot_matrix(jnp.eye(2), ["a", "b"], ["a", "b"])}
    first = [path.read_bytes() for path in save_plots(figures, tmp_path / "a")]
    second = [path.read_bytes() for path in save_plots(figures, tmp_path / "b")]
    assert first == second
    assert [content[:4] for content in first] == [b"\x89PNG", b"<?xm", b"%PDF"]


def test_tokens_with_control_characters_give_valid_svg(tmp_path):
    """XML forbids these characters, and two hyphens in its comments, even where they are escaped."""
    tokens = ["bell\x07", "\x1b[0m", "nul\x00", "\ufffe", "\x85", "--x-->", "]]>&lt;<b>"]
    figure = plot_matrix(jnp.eye(7), tokens, tokens, title="\x01", axes=("\x02", "\x03"))
    (svg,) = [path for path in save_plots({"weights": figure}, tmp_path) if path.suffix == ".svg"]
    ElementTree.fromstring(svg.read_bytes())
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown[:3] == [r"bell\x07", r"\x1b[0m", r"nul\x00"]
    story = random_story("two\x1b[0m w\x00rds", 0)
    assert story.tokens == [r"two\x1b[0m", r"w\x00rds"]


def test_wrong_labels_and_unknown_kinds_are_refused_by_name():
    with pytest.raises(ValueError, match="2 rows and 3 columns"):
        plot_matrix(jnp.eye(2), ["a", "b"], ["a", "b", "c"])
    with pytest.raises(ValueError, match="'heat' is unknown"):
        plot_matrix(jnp.eye(2), ["a", "b"], ["a", "b"], kind="heat")
