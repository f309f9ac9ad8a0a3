"""Every number on the page, in a browser, against separate runs of the library."""

import base64
import itertools

import pytest
from page_numbers import expected_numbers
from page_reader import check_section, section_data

from jaxattn.guide.page import render_page
from jaxattn.guide.story import book_story, random_story


@pytest.mark.parametrize("name", ["simple", "trainable", "causal", "heads"])
@pytest.mark.parametrize("story", [book_story(), random_story("fox fox 🦊", 3)], ids=["book", "own"])
def test_every_number_equals_a_separate_run_of_the_library(open_page, story, name):
    page = render_page(story)
    check_section(open_page(page), section_data(page, name), expected_numbers(story)[name], len(story.tokens))


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
        check_section(open_page(damaged), section, expected_numbers(story)["simple"], 6)


def test_the_books_numbers_are_on_the_page(open_page, book):
    browser = open_page(render_page(book_story()))
    text = browser.find_element("id", "simple").text
    scores, weights = "0.9544 1.4950 1.4754 0.8434 0.7070 1.0865", "0.1385 0.2379 0.2333 0.1240 0.1082 0.1581"
    for number in f"{scores} {weights} 0.4419 0.6515 0.5683".split():
        assert number in text
    for section, numbers in (
        ("trainable", [book["self_attention_v1"]["scores"][1], book["self_attention_v1"]["context"][1]]),
        ("causal", [book["causal_mask_on_v2"]["causal_weights"][3]]),
        ("heads", [book["multi_head_wrapper"]["context"][4], book["multi_head_attention"]["context"][2]]),
    ):
        text = browser.find_element("id", section).text
        for number in itertools.chain(*numbers):
            assert f"{number:.4f}"[:-1] in text  # the last place may round otherwise from seven digits
