"""The calculator of the cache's memory, in a browser."""

from jaxattn.guide.page import render_sections
from jaxattn.guide.sections.grouped import bytes_per_token, grouped_section
from jaxattn.guide.story import book_story


def test_the_calculator_counts_bytes_as_the_library_does(open_page):
    form = open_page(render_sections([grouped_section(book_story())])).find_element("css selector", "form.calculator")
    shown = form.find_element("css selector", "output")
    assert f"{bytes_per_token(32, 8, 128):,} bytes a token" in shown.text
    assert shown.text.endswith("1.00 GiB")
    for name, number in (("layers", 12), ("heads", 12), ("width", 64), ("bytes", 4), ("tokens", 1024)):
        field = form.find_element("name", name)
        field.clear()
        assert "whole numbers" in shown.text
        field.send_keys(str(number))
    assert f"{bytes_per_token(12, 12, 64, 'float32'):,} bytes a token; times 1,024 tokens: 0.07 GiB" in shown.text
