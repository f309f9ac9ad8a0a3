"""The page for all readers: without JavaScript, network, mouse or sight, in light and dark colours."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from jaxattn.guide.page import render_page
from jaxattn.guide.story import random_story

STRANGE = '</script> "quoted" <b>&amp; 🦊 שלום fox fox fox --> `${x}`'


def test_without_javascript_all_tables_are_shown(open_page, book_page):
    assert len(re.findall(r"<td>-?[\d.∞−]+</td>", book_page)) > 500
    browser = open_page(book_page, script=False)
    assert browser.find_element("css selector", "#simple table").is_displayed()
    assert not browser.find_element("css selector", "#simple .controls").is_displayed()


@pytest.mark.parametrize("text", [STRANGE, "one one one", "a b"])
def test_any_tokens_are_shown_verbatim_without_requests_or_console_messages(open_page, text):
    browser = open_page(render_page(random_story(text, 1)))
    labels = [each.get_attribute("textContent") for each in browser.find_elements("css selector", "#simple .word bdi")]
    assert labels == text.split()
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert urls == {browser.current_url}
    assert browser.get_log("browser") == []


def test_the_keyboard_reaches_everything(open_page, fox_page):
    from selenium.webdriver.common.keys import Keys

    browser = open_page(fox_page)
    # Of radio buttons and of a matrix's entries, the Tab key reaches one, and arrow keys the others.
    name = """
        const name = (e) => e.tagName === "INPUT" ? "radio " + e.name : e.role === "radio"
          ? "words" + e.closest("section").id
          : e.dataset.place ? "matrix " + e.closest("section").id + e.closest("table").dataset.array
          : e.tagName === "TD" ? "table " + e.closest("section").id + e.closest("table").caption.textContent
          : [e.tagName, e.closest("section")?.id, e.getAttribute("aria-label") || e.textContent].join(" ");
    """
    seen = []
    for _ in range(400):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        seen.append(browser.execute_script(name + "return name(document.activeElement)"))
        if len(seen) > 3 and seen[-1] == seen[0]:
            break
    controls = """return [...document.querySelectorAll("input, button:not(:disabled), a, td[data-place], .tables td")]
        .filter((e) => getComputedStyle(e).visibility === "visible" && !e.closest("th")).map(name)"""
    assert set(browser.execute_script(name + controls)) <= set(seen)
    browser.find_element("css selector", "#simple .word:nth-child(2)").click()
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert browser.switch_to.active_element.get_attribute("aria-checked") == "true"
    assert "“fox”" in browser.find_element("css selector", "#simple .arcs svg").get_attribute("aria-label")
    cell = browser.find_element("css selector", "#simple .open [data-array=scores] td[tabindex='0']")
    cell.send_keys(Keys.ARROW_DOWN)
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert browser.switch_to.active_element.get_attribute("data-place") == "scores|1,1"
    assert "key “small”" in browser.find_element("css selector", "#simple .which").text
    browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT, Keys.NULL)
    browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT, Keys.NULL)
    browser.switch_to.active_element.send_keys(Keys.ENTER)  # a row's header chooses the query
    assert browser.find_element("css selector", "#simple .word[aria-checked=true] bdi").text == "small"
    browser.find_element("css selector", "#simple .steps button:nth-child(2)").send_keys(Keys.ENTER)
    assert "2 Weights" in browser.find_element("css selector", "#simple .open .what").text


READ_PANEL = """
const [root, act] = arguments, lines = [];
for (const step of root.querySelectorAll(".strip button")) {
  step.click();
  for (const cell of root.querySelectorAll(".open td[data-place]")) {
    if (act === "point") cell.dispatchEvent(new PointerEvent("pointerover", { bubbles: true, pointerType: "mouse" }));
    else cell[act]();
    const lit = [...root.querySelectorAll(".lit, .source")].map((each) => each.dataset.place).join(" ");
    lines.push(root.querySelector(".panel").textContent + lit);
  }
}
return lines;
"""


READ_TABLES = """
return [...document.querySelectorAll(".tables td")].map((cell) => {
  const event = new PointerEvent("pointerover", { bubbles: true, pointerType: "mouse" });
  if (arguments[0] === "point") cell.dispatchEvent(event);
  else cell[arguments[0]]();
  return cell.closest("section").querySelector(".of-tables .panel").textContent + cell.className;
});
"""


def test_pointing_focusing_and_clicking_agree_in_tables(open_page, fox_page):
    browser = open_page(fox_page)
    browser.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
    clicked, focused, pointed = (browser.execute_script(READ_TABLES, act) for act in ("click", "focus", "point"))
    assert clicked == focused == pointed
    assert len(set(clicked)) > 30
    assert all(text.endswith("lit") for text in clicked)


@pytest.mark.parametrize("name", ["simple", "dropout", "heads"])
def test_pointing_focusing_and_clicking_agree(open_page, name, fox_page):
    browser = open_page(fox_page)
    root = browser.find_element("id", name)
    browser.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
    clicked, focused, pointed = (browser.execute_script(READ_PANEL, root, act) for act in ("click", "focus", "point"))
    assert clicked == focused == pointed
    assert len(set(clicked)) > 20


def test_operands_lead_back_to_the_input(open_page, book_page):
    browser = open_page(book_page)
    follow = "const operand = document.querySelector('#causal .panel .operand'); operand?.click(); return !!operand"
    visited = []
    browser.execute_script("[...document.querySelectorAll('#causal .strip button')].at(-1).click()")
    while browser.execute_script(follow):
        visited.append(browser.find_element("css selector", "#causal .which .symbol").text)
        assert browser.execute_script("return document.activeElement.classList.contains('lit')")
        assert len(visited) < 20
    assert visited == ["A", "S″", "S′", "S", "Q", "X"]
    assert "Given by the book" in browser.find_element("css selector", "#causal .why").text
    browser.find_element("css selector", "#causal .trail button").click()
    assert browser.find_element("css selector", "#causal .which .symbol").text == "Q"


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_no_number_of_a_matrix_is_cut_off(open_page, width, book_page):
    browser = open_page(book_page, width)
    cut = "return [...document.querySelectorAll('.matrix td')].filter((td) => td.scrollWidth > td.clientWidth).length"
    assert browser.execute_script(cut) == 0


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_moves_while_stepping(open_page, width, book_page):
    browser = open_page(book_page, width)
    moved = """
        const parts = [...document.querySelectorAll("section, .strip, .stage, .origin, pre")];
        const tops = () => parts.map((e) => e.offsetTop + " " + e.offsetHeight).join();
        const first = tops(), moved = [];
        for (const root of document.querySelectorAll("section"))
          for (const step of root.querySelectorAll(".strip button")) {
            step.click();
            for (const cell of root.querySelectorAll(".open td[data-place]")) {
              cell.click();
              if (tops() !== first) { moved.push(root.id + " " + cell.dataset.place); break; }
            }
          }
        for (const cell of document.querySelectorAll(".tables td")) {
          cell.click();
          if (tops() !== first) moved.push(cell.textContent);
        }
        return moved;
    """
    assert browser.execute_script(moved) == []


@pytest.mark.parametrize("text", ["a small fox", " ".join(["word"] * 24)])
def test_nothing_scrolls_inwards_on_a_phone(open_page, text):
    browser = open_page(render_page(random_story(text, 0)), 360)
    inward = """return [...document.querySelectorAll("section *")].filter((e) => e.scrollWidth > e.clientWidth + 1
        && ["auto", "scroll"].includes(getComputedStyle(e).overflowX)).map((e) => e.className)"""
    assert browser.execute_script(inward) == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_no_accessibility_violations_and_the_page_fits_its_width(open_page, width, dark, book_page):
    axe = pytest.importorskip("axe_core_python", reason="checks accessibility: install the extra browser")
    browser = open_page(book_page, width, dark)
    browser.execute_script((Path(axe.__file__).parent / "axe.min.js").read_text())
    result = browser.execute_async_script("axe.run().then(arguments[0])")
    assert [(v["id"], [n["html"][:150] for n in v["nodes"][:3]]) for v in result["violations"]] == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_the_figure_in_view_can_be_saved_as_well_formed_svg(open_page):
    browser = open_page(render_page(random_story("a <small> fox", 0)))
    saved = browser.execute_async_script("""
        const [done, blobs] = [arguments[0], []];
        URL.createObjectURL = (blob) => { blobs.push(blob.text()); return "#"; };
        for (const root of document.querySelectorAll("section"))
          for (const step of root.querySelectorAll(".strip button")) {
            step.click();
            root.querySelector(".save").click();
          }
        Promise.all(blobs).then(done);
    """)
    assert len(saved) == len(browser.find_elements("css selector", ".strip button")) > 30
    texts = [" ".join(ElementTree.fromstring(text).itertext()) for text in saved]
    assert "<small>" in texts[0]
    assert browser.get_log("browser") == []


def test_the_theme_can_be_chosen(open_page, book_page):
    browser = open_page(book_page)
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = browser.execute_script(colour)
    browser.find_element("id", "theme").click()
    assert browser.execute_script(colour) != light


@pytest.mark.parametrize(("motion", "seconds"), [(True, "0.18s"), (False, "0s")])
def test_an_equation_fades_in_unless_the_reader_prefers_less_motion(open_page, fox_page, motion, seconds):
    browser = open_page(fox_page, motion=motion)
    fade = "return getComputedStyle(document.querySelector('.equation.open')).transitionDuration"
    assert browser.execute_script(fade) == seconds
