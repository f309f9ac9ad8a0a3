"""Every number on the page and its arithmetic, in a browser, against separate runs of the library."""

import base64
import itertools

import pytest
from page_numbers import expected_numbers
from page_reader import check_arithmetic, check_section, section_data, settings

from jaxattn.guide.page import render_page
from jaxattn.guide.story import book_story, random_story

NAMES = ["simple", "trainable", "causal", "dropout", "heads"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("story", [book_story(), random_story("fox fox 🦊", 3)], ids=["book", "own"])
def test_every_number_is_the_librarys_and_its_arithmetic_gives_it(open_page, story, name):
    page = render_page(story)
    check_section(open_page(page), section_data(page, name), expected_numbers(story)[name])


@pytest.mark.parametrize("name", ["before", "positions", "grouped", "windows", "closing"])
def test_the_arithmetic_of_the_sections_around_the_book_gives_their_numbers(open_page, name):
    """Their numbers follow from their operands by `test_equations.py`; of the trained model's, for one head."""
    page = render_page(book_story())
    section = section_data(page, name)
    chosen = list(itertools.islice(settings(section), 1 if name == "closing" else None))
    check_section(open_page(page), section, chosen=chosen)


def test_a_flipped_bit_in_the_data_is_noticed(open_page):
    story = book_story()
    page = render_page(story)
    section = section_data(page, "simple")
    text = section["numbers"]["scores"]["values"][""]
    content = bytearray(base64.b64decode(text))
    content[40] ^= 1
    damaged = page.replace(text, base64.b64encode(content).decode())
    assert damaged != page
    with pytest.raises(AssertionError):
        check_section(open_page(damaged), section, expected_numbers(story)["simple"])


def test_wrong_arithmetic_is_noticed():
    check_arithmetic("0.55 · 0.43 + 0.87 · 0.15 + 0.66 · 0.89 = 0.9544", 0.9544)
    with pytest.raises(AssertionError):
        check_arithmetic("0.55 · 0.43 + 0.87 · 0.15 + 0.66 · 0.88 = 0.9544", 0.9544)
    with pytest.raises(AssertionError):
        check_arithmetic("0.55 · 0.43 + 0.87 · 0.15 + 0.66 · 0.89 = 0.9544", 0.9546)


# Opens a step by its name and returns the numbers of its result.
RESULT = """
const [root, name] = arguments;
[...root.querySelectorAll(".strip button")].find((each) => each.textContent.endsWith(name)).click();
return root.querySelector(".equation.open .operand-matrix:last-child").innerText;
"""


def test_the_books_numbers_are_on_the_page(open_page, book):
    browser = open_page(render_page(book_story()))
    read = lambda section, step: browser.execute_script(RESULT, browser.find_element("id", section), step)  # noqa: E731
    for number in ("0.9544", "1.4950", "1.4754", "0.8434", "0.7070", "1.0865"):
        assert number in read("simple", "Scores")
    for number in ("0.1385", "0.2379", "0.2333", "0.1240", "0.1082", "0.1581"):
        assert number in read("simple", "Weights")
    for number in ("0.4419", "0.6515", "0.5683"):
        assert number in read("simple", "Context")
    for section, step, numbers in (
        ("trainable", "Scores", [book["self_attention_v1"]["scores"][1]]),
        ("trainable", "Context", [book["self_attention_v1"]["context"][1]]),
        ("causal", "Weights", [book["causal_mask_on_v2"]["causal_weights"][3]]),
        ("heads", "Side by side", [book["multi_head_wrapper"]["context"][4]]),
    ):
        text = read(section, step)
        for number in itertools.chain(*numbers):
            shown = f"{number:.4f}"[:-1]  # the last place may round otherwise from seven digits
            assert shown in text or not number
    browser.find_element("css selector", "#heads input[value=projected]").click()
    text = read("heads", "Output")
    assert all(f"{number:.4f}"[:-1] in text for number in book["multi_head_attention"]["context"][2])


def test_the_arithmetic_of_the_books_first_score_stands_as_in_the_text(open_page):
    browser = open_page(render_page(book_story()))
    cell = browser.find_element("css selector", "#simple .open td[data-place='scores|1,0']")
    cell.click()
    panel = browser.find_element("css selector", "#simple .panel .arithmetic")
    assert panel.text == "0.55 · 0.43 + 0.87 · 0.15 + 0.66 · 0.89 = 0.9544"
    lit = browser.find_elements("css selector", "#simple .open td.source")
    assert {each.get_attribute("data-place") for each in lit} == {
        f"inputs|{row},{c}" for row in (0, 1) for c in range(3)
    }
