"""The section of a trained model, in a browser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from page_numbers import Near
from page_reader import check_section, section_data

from jaxattn import GPT, GPTConfig
from jaxattn.files import write_whole
from jaxattn.functional import attention_scores
from jaxattn.guide.page import render_page
from jaxattn.guide.section import short
from jaxattn.guide.trained import trained_story
from jaxattn.tasks.pronouns.report import PronounReport
from jaxattn.tasks.pronouns.words import make_tokenizer, vocabulary
from jaxattn.tasks.reports import write_report
from jaxattn.training.saving import load_model, save_model
from jaxattn.training.tokenizer import printable


def test_a_trained_models_numbers_are_those_of_its_layers(open_page, run):
    page = render_page(trained_story(run, "my fox", 0))
    section = section_data(page, "trained")
    model, params = load_model(run)
    logits, state = model.apply({"params": params}, jnp.array(list(b"my fox")), capture_intermediates=True)

    def numbers(setting):
        layer = state["intermediates"][f"block_{setting['layer']}"]["attention"]
        queries, keys, values = (
            jnp.moveaxis(layer[name]["__call__"][0].reshape(6, 2, 4), 1, 0)  # (T, H * D) -> (H, T, D)
            for name in ("query", "key", "value")
        )
        scores, weights = attention_scores(queries, keys), layer["weights"][0]
        return {
            "scores": scores,
            "scaled": Near(scores / 2),
            "masked": Near(jnp.where(jnp.tril(jnp.ones((6, 6), bool)), scores / 2, -jnp.inf)),
            "weights": weights,
            "context": Near(weights @ values),
        }

    browser = open_page(page)
    check_section(browser, section, numbers)
    rows = browser.find_elements("css selector", "#trained .tables tbody tr")
    for row, each in zip(rows, jax.nn.softmax(logits), strict=True):
        likely = jax.lax.top_k(each, 5)
        words = [f"{printable([int(token)])} {short(float(p))}" for p, token in zip(*likely, strict=True)]
        assert [cell.text for cell in row.find_elements("css selector", "td")] == words
    assert "carry no meaning" in page


def test_a_run_of_pronouns_opens_at_the_pronoun_and_the_head_that_attends_to_its_noun(open_page, tmp_path):
    directory, config = tmp_path, GPTConfig(len(vocabulary()), 16, 2, 2, 8)
    write_whole(directory / "tokenizer.json", make_tokenizer().to_str().encode())
    save_model(directory, config, GPT(config).init(jax.random.key(0), jnp.zeros(4, jnp.int32))["params"])
    attention, attention_before = np.array([[0.1, 0.9], [0.0, 0.15]]), np.zeros((2, 2))
    write_report(directory / "pronouns.json", PronounReport(0.995, 0.99, 0.5, attention, attention_before))
    story = trained_story(str(directory), "the fox bit him barking .", 0)
    assert (story.best_head, story.tokens[story.query]) == ((0, 1), "him")
    section = open_page(render_page(story)).find_element("id", "trained")
    assert "head 1 of layer 0 gives the noun 0.90 of its attention" in section.text
    assert "99.5%" in section.text
    chosen = [section.find_element("css selector", f"[name$={name}]:checked") for name in ("layer", "head")]
    assert section.find_element("css selector", ".word[aria-checked=true] bdi").text == "him"
    assert [each.get_attribute("value") for each in chosen] == ["0", "1"]
    (directory / "pronouns.json").write_text("{}")
    with pytest.raises(ValueError, match=r"pronouns\.json is damaged"):
        trained_story(str(directory), None, 0)


def test_a_heads_picture_chooses_it_and_keeps_the_focus(open_page, run):
    browser = open_page(render_page(trained_story(run, "my fox", 0)))
    buttons = browser.find_elements("css selector", "#trained .heads button")
    assert [button.text for button in buttons] == [f"layer {layer}, head {head}" for layer in "01" for head in "01"]
    buttons[2].send_keys(" ")
    for name, value in (("layer", "1"), ("head", "0")):
        chosen = browser.find_element("css selector", f"#trained [data-switch={name}] input:checked")
        assert chosen.get_attribute("value") == value
    assert browser.switch_to.active_element.text == "layer 1, head 0"
    assert browser.switch_to.active_element.get_attribute("aria-pressed") == "true"
