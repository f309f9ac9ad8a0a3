"""What the sections before and after the book's show, computed once more."""

from importlib import resources

import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.additive import additive_scores
from jaxattn.guide.sections.before import before_section
from jaxattn.guide.sections.grouped import bytes_per_token, grouped_section
from jaxattn.guide.sections.opening import closing_section, opening_section
from jaxattn.guide.sections.positions import positions_section
from jaxattn.guide.sections.windows import windows_section
from jaxattn.guide.shipped import FILE, load_shipped, write_shipped
from jaxattn.guide.story import book_story

BOOK = book_story()


def values(section, name, where=""):
    return np.asarray(section.numbers[name].values[where], np.float64)


def test_the_page_opens_with_one_arc_from_him_to_dog():
    section = opening_section()
    weights = values(section, section.arcs)
    assert (section.tokens[section.query], section.tokens[int(weights[section.query].argmax())]) == ("him", "dog")
    assert weights[section.query].max() > 0.9
    assert not section.equations
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert not np.triu(weights, 1).any()


def test_the_page_ends_with_the_head_that_was_measured_over_many_sentences():
    section, report = closing_section(BOOK), load_shipped().report
    layer, head = report.best_head
    assert {switch.name: switch.initial for switch in section.switches} == {"layer": str(layer), "head": str(head)}
    assert f"{report.attention[layer, head]:.2f} of its attention" in section.paragraphs[1]
    assert report.attention[layer, head] > 0.9
    (others,) = (table for table in section.tables if table.columns[0] == "sentence")
    for words, (noun, weight, rival) in others.rows:
        assert noun.text in words.split()
        assert float(weight.text) > 0.5 > float(rival.text.split()[1])


def test_the_shipped_heads_are_small_and_their_sentences_end_with_a_pronoun():
    shipped = load_shipped()
    assert all(sentence.tokens[-1] in ("him", "her") for sentence in shipped.sentences)
    assert all(np.isfinite(array).all() for sentence in shipped.sentences for array in sentence[2:5])
    # after the word before the pronoun, the model predicts the pronoun
    assert all(sentence.next_words[-2][0][0] == sentence.tokens[-1] for sentence in shipped.sentences)
    assert len((resources.files("jaxattn.guide") / FILE).read_bytes()) < 200_000


def test_heads_are_not_shipped_from_a_run_of_another_task(tmp_path, run):
    with pytest.raises((ValueError, OSError)):
        write_shipped(run, tmp_path / FILE)
    assert not list(tmp_path.iterdir())


def test_additive_scores_stand_beside_dot_products():
    section = before_section(BOOK)
    queries, keys = (jnp.asarray(values(section, name), jnp.float32) for name in ("queries", "keys"))
    additive = additive_scores(queries, keys, jnp.ones(2))
    np.testing.assert_allclose(values(section, "scores", "way=additive"), additive, atol=1e-6)
    np.testing.assert_allclose(values(section, "scores", "way=product"), queries @ keys.T, atol=1e-6)


def test_rotated_scores_are_the_same_wherever_the_sentence_stands():
    section = positions_section(BOOK)
    first = values(section, "rotated scores", "shift=0")
    for shift in (1, 10, 100):
        assert np.abs(values(section, "rotated queries", f"shift={shift}") - values(section, "queries")).max() > 0.1
        np.testing.assert_allclose(values(section, "rotated scores", f"shift={shift}"), first, atol=1e-5)
    for _, cells in section.tables[0].rows:
        assert np.ptp([float(cell.text) for cell in cells]) <= 1e-4
    assert len({cells[0].text for _, cells in section.tables[0].rows}) == 4


def test_heads_that_share_keys_have_scores_of_their_own():
    section = grouped_section(BOOK)
    keys = values(section, "keys")
    np.testing.assert_array_equal(keys[0], values(section, "shared keys"))
    scores = values(section, "scores", "sharing=shared")
    np.testing.assert_allclose(scores, values(section, "queries") @ keys[0].T, atol=1e-6)
    assert np.abs(scores[0] - scores[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("sizes", "expected"), [((12, 12, 64, "float32"), 2 * 12 * 768 * 4), ((32, 8, 128), 2 * 32 * 8 * 128 * 2)]
)
def test_a_cache_grows_by_the_keys_and_values_of_all_layers(sizes, expected):
    assert bytes_per_token(*sizes) == expected


def test_a_window_of_one_copies_and_a_window_reaches_farther_with_each_layer():
    section = windows_section(BOOK)
    np.testing.assert_array_equal(values(section, "weights", "size=1"), np.eye(6))
    np.testing.assert_array_equal(
        values(section, "weights", "size=3") > 0, np.tril(np.ones((6, 6))) - np.tril(np.ones((6, 6)), -3) > 0
    )
    reach, cost = section.tables
    assert {size: [int(cell.text) for cell in cells] for size, cells in reach.rows} == {
        size: [layers * (int(size) - 1) + 1 for layers in (1, 2, 4)] for size in "123"
    }
    for length, cells in cost.rows:
        T = int(length.replace(",", ""))
        expected = T * (T + 1) // 2, sum(min(t, 256) for t in range(1, T + 1))
        assert tuple(int(cell.text.replace(",", "")) for cell in cells) == expected
