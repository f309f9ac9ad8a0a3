"""The figure of a module in a notebook."""

import html
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from page_reader import check_arithmetic

from jaxattn import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention,
    SimpleSelfAttention,
)
from jaxattn.guide import show
from jaxattn.guide.notebook import module_section
from jaxattn.guide.rules import evaluate
from jaxattn.guide.trace import trace

X, TOKENS = jax.random.normal(jax.random.key(0), (4, 3)), ["a", "<b>", '"c"', "🦊"]
STAGES = [
    SimpleSelfAttention(),
    SelfAttention(2, use_bias=True),
    CausalAttention(2),
    MultiHeadAttentionWrapper(2, 2, use_bias=True),
    MultiHeadAttention(2, 4, use_bias=True),
]


@pytest.mark.parametrize("module", STAGES, ids=lambda module: type(module).__name__)
def test_every_step_of_a_stage_follows_from_its_operands(module):
    variables = module.init(jax.random.key(1), X)
    section = module_section(module, variables, trace(module, variables, X), TOKENS)
    known = {name for name, numbers in section.numbers.items() if numbers.note}
    for equation in section.equations:
        assert set(equation.operands) <= known
        known.add(equation.result)
        arrays = [section.numbers[name].values[""] for name in (*equation.operands, equation.result)]
        np.testing.assert_allclose(arrays[-1], evaluate(equation, arrays[:-1], arrays[-1].shape), atol=2e-6)
    result = section.numbers[section.equations[-1].result].values[""]
    np.testing.assert_allclose(result, module.apply(variables, X), atol=2e-6)


def test_a_notebook_draws_the_figure_in_a_frame_of_its_own(open_page):
    module = MultiHeadAttention(2, 4, use_bias=True)
    frame = show(module, module.init(jax.random.key(1), X), X, tokens=TOKENS)._repr_html_()
    assert "<b>" not in html.unescape(re.search('srcdoc="([^"]*)"', frame)[1]).split('id="data"')[0]
    browser = open_page(f"<!doctype html><p>A notebook</p>{frame}")
    assert browser.execute_script("return getComputedStyle(document.body).maxWidth") == "none"  # no style leaks
    browser.switch_to.frame(0)
    words = browser.find_elements("css selector", ".word bdi")
    assert [word.text for word in words] == TOKENS
    for step in browser.find_elements("css selector", ".strip button"):
        browser.execute_script("arguments[0].click()", step)
        place = "return document.querySelector('.open td.lit').dataset.value"
        line = browser.find_element("css selector", ".panel .arithmetic").text
        check_arithmetic(line, float(browser.execute_script(place).replace("Infinity", "inf")))
    browser.switch_to.default_content()
    assert browser.get_log("browser") == []


def test_wrong_numbers_of_tokens_are_refused_by_name():
    with pytest.raises(ValueError, match="tokens has 1 words, but x has 4 rows"):
        show(SimpleSelfAttention(), {}, X, tokens=["one"])


def test_the_package_is_imported_without_jinja2():
    code = "import sys, jaxattn, jaxattn.guide; assert 'jinja2' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
