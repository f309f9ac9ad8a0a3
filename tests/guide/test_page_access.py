"""The page for all readers: without JavaScript, network, mouse or sight, in light and dark colours."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from jaxattn.guide.page import format_number, render_page
from jaxattn.guide.story import book_story, random_story

STRANGE = '</script> "quoted" <b>&amp; 🦊 שלום fox fox fox --> `${x}`'


def test_without_javascript_all_tables_are_shown(open_page):
    page = render_page(book_story())
    cells = re.findall(r'<td data-value="([^"]+)">([^<]+)</td>', page)
    assert len(cells) > 500
    assert all(text == format_number(float(value)) for value, text in cells)
    browser = open_page(page, script=False)
    assert browser.find_element("css selector", "#simple table").is_displayed()
    assert not browser.find_element("css selector", "#simple .controls").is_displayed()


@pytest.mark.parametrize("text", [STRANGE, "one one one", "a b"])
def test_any_tokens_are_shown_verbatim_without_requests_or_console_messages(open_page, text):
    browser = open_page(render_page(random_story(text, 1)))
    labels = [
        each.get_attribute("textContent")
        for each in browser.find_elements("css selector", "#simple [data-switch=query] label")
    ]
    assert labels == text.split()
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert urls == {browser.current_url}
    assert browser.get_log("browser") == []


def test_the_keyboard_reaches_everything(open_page):
    from selenium.webdriver.common.keys import Keys

    browser = open_page(render_page(random_story("a small fox", 0)))
    name = """
        const name = (e) => e.tagName === "INPUT" ? "radio " + e.name
          : [e.tagName, e.closest("section")?.id, e.getAttribute("aria-label") || e.textContent].join(" ");
    """
    seen = []
    for _ in range(400):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        seen.append(browser.execute_script(name + "return name(document.activeElement)"))
        if len(seen) > 3 and seen[-1] == seen[0]:
            break
    controls = "return [...document.querySelectorAll('input, button:not(:disabled), a')].map(name)"
    assert set(browser.execute_script(name + controls)) <= set(seen)
    radio = browser.find_element("css selector", "#simple [data-switch=query] input:checked")
    radio.send_keys(Keys.ARROW_RIGHT)
    assert (
        browser.execute_script("return document.querySelector('#simple [data-switch=query] input:checked').value")
        == "2"
    )
    assert "“fox”" in browser.find_element("css selector", "#simple .arcs svg").get_attribute("aria-label")
    cell = browser.find_element("css selector", "#simple .figure td[tabindex='0']")
    cell.send_keys(Keys.ARROW_DOWN)
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    place = "const c = document.activeElement; return [c.parentElement.rowIndex, c.cellIndex]"
    assert browser.execute_script(place) == [2, 2]
    step = browser.find_element("css selector", "#simple .step > button:last-child")
    step.send_keys(Keys.ENTER)
    assert "Step 2 of 5, score" in browser.find_element("css selector", "#simple [aria-live]").text


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_no_accessibility_violations_and_the_page_fits_its_width(open_page, width, dark):
    axe = pytest.importorskip("axe_core_python", reason="checks accessibility: install the extra browser")
    browser = open_page(render_page(book_story()), width, dark)
    browser.execute_script((Path(axe.__file__).parent / "axe.min.js").read_text())
    result = browser.execute_async_script("axe.run().then(arguments[0])")
    assert [(v["id"], [n["html"][:150] for n in v["nodes"][:3]]) for v in result["violations"]] == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_every_figure_and_the_arcs_can_be_saved_as_well_formed_svg(open_page):
    browser = open_page(render_page(random_story("a <small> fox", 0)))
    saved = browser.execute_async_script("""
        const [done, blobs] = [arguments[0], []];
        URL.createObjectURL = (blob) => { blobs.push(blob.text()); return "#"; };
        for (const button of document.querySelectorAll("button[aria-label^='Save as SVG']")) button.click();
        Promise.all(blobs).then(done);
    """)
    assert len(saved) == len(browser.find_elements("css selector", ".figure, .arcs")) > 30
    texts = [" ".join(ElementTree.fromstring(text).itertext()) for text in saved]
    assert all("<small>" in text for text in texts[:2])  # the arcs and the input vectors of section 1
    assert browser.get_log("browser") == []


def test_the_theme_can_be_chosen(open_page):
    browser = open_page(render_page(book_story()))
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = browser.execute_script(colour)
    browser.find_element("id", "theme").click()
    assert browser.execute_script(colour) != light
