"""Every number on the page and its arithmetic, in a browser, against separate runs of the library."""

import base64
import itertools

import pytest
from page_numbers import EXPECTED
from page_reader import check_arithmetic, check_section, check_tables, section_data, settings

from jaxattn.guide.page import render_page
from jaxattn.guide.story import book_story, random_story

OWN = random_story("fox fox 🦊", 3)
NAMES = ["simple", "trainable", "causal", "dropout", "heads"]


@pytest.fixture(scope="module")
def own_page():
    return render_page(OWN)


@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_the_librarys_and_its_arithmetic_gives_it(open_page, book_page, name):
    check_section(open_page(book_page), section_data(book_page, name), EXPECTED[name](book_story()))


@pytest.mark.parametrize("name", NAMES)
def test_so_it_is_for_a_sentence_of_ones_own(open_page, own_page, name):
    section = section_data(own_page, name)
    chosen = [each for number, each in enumerate(settings(section)) if number % 5 == 0]
    check_section(open_page(own_page), section, EXPECTED[name](OWN), chosen)


def test_the_arithmetic_of_every_number_in_the_tables_gives_it(open_page, book_page):
    given = check_tables(open_page(book_page))
    numbers = [text for text in given if any(letter.isdigit() for letter in text)]
    # Probabilities of the next word, whose model is not on the page, and the sizes of known models.
    sizes = [12, 12, 12, 64, 32, 32, 32, 128, 32, 32, 8, 128]
    assert [int(text) for text in numbers if " " not in text] == sizes
    assert len(numbers) == 12 + 5 * 10


# Each kind of text with digits: what it is in, and whether it answers with its arithmetic.
KINDS = """
const kinds = { matrix: "td[data-place]", table: ".tables td", "weight of a word": ".word small", arithmetic: ".origin",
  calculator: ".calculator", "name of a row or column": "th", shape: "figcaption", "name of a step": ".what, .strip",
  choice: ".options, .heads, legend", heading: "h1, h2, nav, .code-title, caption", code: "pre, code",
  quiz: "#quiz", prose: "section > p, header p", script: "script, style, title, noscript" };
const walker = document.createTreeWalker(document.documentElement, NodeFilter.SHOW_TEXT), counts = {}, unknown = [];
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  const found = node.textContent.match(/\\d[\\d.,e-]*/g), parent = node.parentElement;
  if (!found) continue;
  const kind = Object.keys(kinds).find((each) => parent.closest(kinds[each]));
  if (!kind) unknown.push(parent.outerHTML.slice(0, 200));
  counts[kind] = (counts[kind] || 0) + found.length;
}
return [counts, unknown];
"""


def test_every_kind_of_number_on_the_page_is_known(open_page, book_page):
    counts, unknown = open_page(book_page).execute_script(KINDS)
    assert unknown == []
    assert counts["matrix"] > 1000
    assert counts["table"] > 80
    print(counts)


POINT_AT_WORDS = """
return [...document.querySelectorAll("section:has(.equation) .words .word")].map((word) => {
  word.dispatchEvent(new PointerEvent("pointerover", { bubbles: true, pointerType: "mouse" }));
  const output = word.closest("section").querySelector(".panel output").textContent;
  return [word.querySelector("small").textContent, output];
});
"""


def test_a_weight_below_a_word_answers_as_its_matrix_does(open_page, book_page):
    pairs = open_page(book_page).execute_script(POINT_AT_WORDS)
    assert len(pairs) == 9 * 6 + 10
    for shown, answered in pairs:
        assert answered == "0" if shown == "–" else abs(float(shown) - float(answered)) < 6e-5


@pytest.mark.parametrize("name", ["before", "positions", "grouped", "windows", "closing"])
def test_the_arithmetic_of_the_sections_around_the_book_gives_their_numbers(open_page, name, book_page):
    """Their numbers follow from their operands by `test_equations.py`; of the trained model's, for one head."""
    section = section_data(book_page, name)
    chosen = list(itertools.islice(settings(section), 1 if name == "closing" else None))
    check_section(open_page(book_page), section, chosen=chosen)


def test_a_flipped_bit_in_the_data_is_noticed(open_page, book_page):
    section = section_data(book_page, "simple")
    text = section["numbers"]["scores"]["values"][""]
    content = bytearray(base64.b64decode(text))
    content[40] ^= 1
    damaged = book_page.replace(text, base64.b64encode(content).decode())
    assert damaged != book_page
    with pytest.raises(AssertionError):
        check_section(open_page(damaged), section, EXPECTED["simple"](book_story()))


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


def test_the_books_numbers_are_on_the_page(open_page, book, book_page):
    browser = open_page(book_page)
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


def test_the_arithmetic_of_the_books_first_score_stands_as_in_the_text(open_page, book_page):
    browser = open_page(book_page)
    cell = browser.find_element("css selector", "#simple .open td[data-place='scores|1,0']")
    cell.click()
    panel = browser.find_element("css selector", "#simple .panel .arithmetic")
    assert panel.text == "0.55 · 0.43 + 0.87 · 0.15 + 0.66 · 0.89 = 0.9544"
    # The query's row of X, and the key's column of its transpose.
    for which, row in ((0, 1), (1, 0)):
        lit = browser.find_elements("css selector", f"#simple .open td.source[data-which='{which}']")
        assert [each.get_attribute("data-place") for each in lit] == [f"inputs|{row},{c}" for c in range(3)]
