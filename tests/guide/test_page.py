"""The page in a browser: every number in every position of the switches, for everybody, without a network."""

import base64
import html
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import (
    GPT,
    GPTConfig,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    parallel_from_stacked,
)
from jaxattn.functional import (
    attention_scores,
    attention_weights,
    context_vectors,
    dropout,
    renormalized_weights,
)
from jaxattn.guide.page import render_page, shown
from jaxattn.guide.story import book_story, drawn_story, run_story
from jaxattn.tasks.pronouns.report import PronounReport, write_report
from jaxattn.tasks.pronouns.words import make_tokenizer
from jaxattn.training.saving import load_model, save_model, write_whole
from jaxattn.training.tokenizer import printable

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
STRANGE = '</script> "quoted" <b>&amp; 🦊 שלום fox fox fox --> `${x}`'
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium; where JAXATTN_BROWSER is set, as it is in `.ci/run`, it must be there."""
    if not (CHROMIUM and DRIVER) and not os.environ.get("JAXATTN_BROWSER"):
        pytest.skip("NO BROWSER: the page itself was not tested; install chromium and chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="drives Chromium: install the extra browser")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def open_page(browser, tmp_path):
    def open_it(page, width=1280, dark=False, script=True):
        path = tmp_path / "guide.html"
        path.write_text(page, encoding="utf-8")
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
        browser.get_log("browser"), browser.get_log("performance")
        browser.get(path.as_uri())
        return browser

    return open_it


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A saved model of random weights, which reads bytes."""
    place = tmp_path_factory.mktemp("run")
    config = GPTConfig(256, 16, 2, 2, 8)
    save_model(place, config, GPT(config).init(jax.random.key(0), jnp.zeros(4, jnp.int32))["params"])
    return str(place)


# What the page must show, from separate runs of the library: section -> array -> function of the switches.


def expected(story):
    x, tokens = story.inputs, len(story.tokens)
    simple = {"softmax": attention_weights(attention_scores(x, x))}
    simple["divide"] = attention_scores(x, x) / attention_scores(x, x).sum(-1, keepdims=True)

    def project(params):
        return [nn.Dense(p["kernel"].shape[1], use_bias=False).apply({"params": p}, x) for p in three(params)]

    def three(params):
        return [params[name] for name in ("query", "key", "value")]

    query, key, value = project(story.trainable["params"])
    scores, root = attention_scores(query, key), query.shape[-1] ** -0.5
    scale = lambda s: (root if s["scaling"] == "on" else 1.0) / float(s["temperature"])  # noqa: E731
    trainable = lambda s: attention_weights(scores, scale=scale(s))  # noqa: E731

    query3, key3, value3 = project(story.causal["params"])
    scores3, mask = attention_scores(query3, key3), jnp.tril(jnp.ones((tokens, tokens), bool))
    plain = attention_weights(scores3, scale=root)
    ways = {
        "before": attention_weights(scores3, mask, scale=root),
        "after": jnp.where(mask, plain, 0),
        "renormalised": renormalized_weights(scores3, mask, scale=root),
    }

    def drop(s, array):
        return dropout(array, float(s["rate"]), jax.random.key(int(s["key"]))) if float(s["rate"]) else array

    def cut(params, heads):
        return [jnp.moveaxis(a.reshape(tokens, heads, -1), 1, 0) for a in project(params)]

    stacked = [jnp.stack(each) for each in zip(*map(project, story.stacked["params"].values()), strict=True)]
    params = parallel_from_stacked(story.stacked["params"])
    layers = {
        "stacked": MultiHeadAttentionWrapper(2, 2).apply(story.stacked, x, return_weights=True),
        "parallel": MultiHeadAttention(2, 4).apply({"params": params}, x, return_weights=True),
    }
    out = story.parallel["params"]["out"]
    features = out["kernel"].shape[0]
    layers["projected"] = MultiHeadAttention(2, features).apply(story.parallel, x, return_weights=True)
    heads = {"stacked": stacked, "parallel": stacked, "projected": cut(story.parallel["params"], 2)}
    scores4 = {way: attention_scores(*heads[way][:2]) for way in heads}
    scaled4 = {way: scores4[way] * heads[way][0].shape[-1] ** -0.5 for way in heads}
    context4 = {way: layers[way][1] @ heads[way][2] for way in heads}
    first = {"before": jnp.where(mask, scores3 * jnp.float32(root), -jnp.inf)}
    joined = lambda array: jnp.concatenate(list(array), axis=-1)  # noqa: E731
    return {
        "simple": {
            "inputs": lambda s: x,
            "products": lambda s: x[:, None] * x[None],
            "scores": lambda s: attention_scores(x, x),
            "weights": lambda s: simple[s["way"]],
            "shares": lambda s: simple[s["way"]][..., None] * x[None],
            "context": lambda s: context_vectors(simple[s["way"]], x),
        },
        "trainable": {
            "inputs": lambda s: x,
            "query": lambda s: query,
            "key": lambda s: key,
            "value": lambda s: value,
            "scores": lambda s: scores,
            "scaled": lambda s: scores * jnp.float32(scale(s)),
            "weights": trainable,
            "context": lambda s: context_vectors(trainable(s), value),
            **{f"W {n}": lambda s, n=n: story.trainable["params"][n]["kernel"] for n in ("query", "key", "value")},
        },
        "causal": {
            "scores": lambda s: scores3,
            "scaled": lambda s: scores3 * jnp.float32(root),
            "masked": lambda s: jnp.where(mask, scores3 * jnp.float32(root), -jnp.inf),
            "weights": lambda s: ways[s["way"]],
            "query": lambda s: query3,
            "key": lambda s: key3,
            "before softmax": lambda s: first.get(s["way"], scores3 * jnp.float32(root)),
            "softmax": lambda s: ways["before"] if s["way"] == "before" else plain,
            "ways": lambda s: jnp.stack(list(ways.values())),
            "kept": lambda s: drop(s, jnp.ones((tokens, tokens))) > 0,
            "dropped": lambda s: drop(s, ways[s["way"]]),
            "sums": lambda s: drop(s, ways[s["way"]]).sum(-1, keepdims=True),
            "value": lambda s: value3,
            "context": lambda s: context_vectors(drop(s, ways[s["way"]]), value3),
            "differences": lambda s: [[jnp.abs(a - b).max() for b in ways.values()] for a in ways.values()],
        },
        # To the last bit what the modules return; what is computed for all heads at once or one by one, to rounding.
        "heads": {
            "joined query": lambda s: Near(joined(heads[s["way"]][0])),
            "query": lambda s: Near(heads[s["way"]][0]),
            "key": lambda s: Near(heads[s["way"]][1]),
            "value": lambda s: Near(heads[s["way"]][2]),
            "scores": lambda s: Near(scores4[s["way"]]),
            "scaled": lambda s: Near(scaled4[s["way"]]),
            "masked": lambda s: Near(jnp.where(mask, scaled4[s["way"]], -jnp.inf)),
            "weights": lambda s: layers[s["way"]][1],
            "context": lambda s: Near(context4[s["way"]]),
            "concatenation": lambda s: Near(joined(context4[s["way"]])),
            "output": lambda s: layers[s["way"]][0],
            "differences": lambda s: Near(np.zeros((5, 1))),
            "W out": lambda s: out["kernel"],
            "bias": lambda s: out["bias"][None],
            "projected output": lambda s: layers["projected"][0],
        },
    }


class Near:
    """Numbers that another order of sums may change in the last bits."""

    def __init__(self, array):
        self.array = np.asarray(array)


def same(came, wanted):
    if isinstance(wanted, Near):
        np.testing.assert_allclose(came, wanted.array, atol=1e-6)
    else:
        wanted = np.asarray(wanted, np.float32)
        assert came.shape == wanted.shape
        np.testing.assert_array_equal(came.view(np.uint32), wanted.view(np.uint32))


# For one position of the switches: what is shown for every query, at every step.
READ = """
const [root, state, tokens] = arguments;
const cells = (row) => [...row.querySelectorAll("td")].map((cell) => [cell.dataset.value, cell.textContent]);
const rows = (table) => [...table.tBodies[0].rows].map(cells);
const choose = (name, value) => root.querySelector(`[data-choice='${name}'] input[value='${value}']`).click();
for (const [name, value] of Object.entries(state)) choose(name, value);
const seen = [];
for (let query = 0; query < tokens; query++) {
  choose("query", query);
  const steps = [...root.querySelectorAll(".step ol button")].map((button) => {
    button.click();
    return rows(root.querySelector(".stepper table"));
  });
  const figures = [...root.querySelectorAll(".figure")].map((each) => [...each.querySelectorAll("table")].map(rows));
  const arcs = [...root.querySelectorAll(".arcs text.amount")].map((text) => text.textContent);
  const cellsOf = (picture) => [...picture.querySelectorAll("rect")].map((cell) => cell.dataset.value);
  const heads = [...root.querySelectorAll(".heads button")].map(cellsOf);
  seen.push({ steps, figures, arcs, heads });
}
return seen;
"""


def numbers(rows):
    for row in rows:
        for value, text in row:
            assert text == shown(float(value))
    return np.array([[float(value) for value, _ in row] for row in rows], np.float64).astype(np.float32)


def check_section(browser, section, expected, tokens):
    """Put the switches in all positions, choose each query and step, and compare whatever is there."""
    root, axes = browser.find_element("id", section["id"]), {n: a["axes"] for n, a in section["numbers"].items()}
    for values in itertools.product(*([value for value, _ in choice["options"]] for choice in section["choices"])):
        state = {choice["name"]: value for choice, value in zip(section["choices"], values, strict=True)}
        wanted = {name: of(state) for name, of in expected.items()}
        for query, seen in enumerate(browser.execute_script(READ, root, state, tokens)):
            for step, rows in zip(section["steps"], seen["steps"], strict=True):
                whole = wanted[step["array"]]
                row = np.asarray(whole.array if isinstance(whole, Near) else whole)
                row = row[int(state["head"])] if axes[step["array"]][0] == "head" else row
                row = row[query] if row.ndim == 3 else row[query][None]
                same(numbers(rows), Near(row) if isinstance(whole, Near) else row)
            for figure, tables in zip(section["figures"], seen["figures"], strict=True):
                came = np.stack([numbers(rows) for rows in tables])
                same(came if len(axes[figure["array"]]) == 3 else came[0], wanted[figure["array"]])
            weights = wanted[section["arcs"]]
            weights = np.asarray(weights.array if isinstance(weights, Near) else weights)
            assert bool(seen["heads"]) == ("head" in state)
            if "head" in state:
                shown_heads = (
                    np.array(seen["heads"], np.float64)
                    .astype(np.float32)
                    .reshape(-1, len(weights), tokens * (tokens + 1) // 2)
                )
                layer = int(state.get("layer", 0))
                same(shown_heads[layer], np.stack([head[np.tril_indices(tokens)] for head in weights]))
                weights = weights[int(state["head"])]
            np.testing.assert_allclose([float(text) for text in seen["arcs"]], weights[query], atol=6e-5)


def payload(page):
    return json.loads(html.unescape(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]))


@pytest.mark.parametrize("name", ["simple", "trainable", "causal", "heads"])
@pytest.mark.parametrize("story", [book_story(), drawn_story("fox fox 🦊", 3)], ids=["book", "own"])
def test_every_number_equals_a_separate_run_of_the_library(open_page, story, name):
    page = render_page(story)
    browser = open_page(page)
    (section,) = (each for each in payload(page)["sections"] if each["id"] == name)
    check_section(browser, section, expected(story)[name], len(story.tokens))


def test_a_trained_models_numbers_are_those_of_its_layers(open_page, run):
    story = run_story(run, "a fox", 0)
    page = render_page(story)
    (section,) = (each for each in payload(page)["sections"] if each["id"] == "trained")
    model, params = load_model(run)
    logits, kept = model.apply({"params": params}, jnp.array(list(b"a fox")), capture_intermediates=True)
    blocks = [kept["intermediates"][f"block_{layer}"]["attention"] for layer in range(2)]
    cut = lambda array: jnp.moveaxis(array["__call__"][0].reshape(5, 2, 4), 1, 0)  # noqa: E731
    mask = jnp.tril(jnp.ones((5, 5), bool))

    def scores(s):
        block = blocks[int(s["layer"])]
        return attention_scores(cut(block["query"]), cut(block["key"]))

    def weights(s):
        return blocks[int(s["layer"])]["weights"][0]

    likely = jax.nn.softmax(logits)
    likeliest = jnp.argsort(-likely.max(0))[:10]
    wanted = {
        "scores": scores,
        "scaled": lambda s: Near(scores(s) / 2),
        "masked": lambda s: Near(jnp.where(mask, scores(s) / 2, -jnp.inf)),
        "weights": weights,
        "context": lambda s: Near(weights(s) @ cut(blocks[int(s["layer"])]["value"])),
        "next": lambda s: likely[:, likeliest],
    }
    check_section(open_page(page), section, wanted, 5)
    assert section["labels"]["next"] == [printable([token]) for token in likeliest]
    assert "carry no meaning" in page


def test_a_run_of_pronouns_opens_at_the_pronoun_and_the_head_that_found_its_noun(open_page, run, tmp_path):
    directory = shutil.copytree(run, tmp_path / "run")
    found, before = np.array([[0.1, 0.9], [0.0, 0.15]]), np.zeros((2, 2))
    write_report(directory / "pronouns.json", PronounReport(0.995, 0.99, 0.5, found, before))
    write_whole(directory / "tokenizer.json", make_tokenizer().to_str().encode())
    story = run_story(str(directory), "the fox bit him barking .", 0)
    assert (story.best, story.tokens[story.query]) == ((0, 1), "him")
    section = open_page(render_page(story)).find_element("id", "trained")
    assert "head 1 of layer 0 pays the noun 0.90 of its attention" in section.text
    assert "99.5%" in section.text
    chosen = [section.find_element("css selector", f"[name$={name}]:checked") for name in ("query", "layer", "head")]
    assert [each.get_attribute("value") for each in chosen] == ["3", "0", "1"]
    (directory / "pronouns.json").write_text("{}")
    with pytest.raises(ValueError, match=r"pronouns\.json is damaged"):
        run_story(str(directory), None, 0)


def test_a_heads_picture_chooses_it_and_keeps_the_focus(open_page, run):
    browser = open_page(render_page(run_story(run, "a fox", 0)))
    buttons = browser.find_elements("css selector", "#trained .heads button")
    assert [button.text for button in buttons] == [f"layer {layer}, head {head}" for layer in "01" for head in "01"]
    buttons[2].send_keys(" ")
    for name, value in (("layer", "1"), ("head", "0")):
        chosen = browser.find_element("css selector", f"#trained [data-choice={name}] input:checked")
        assert chosen.get_attribute("value") == value
    assert browser.switch_to.active_element.text == "layer 1, head 0"
    assert browser.switch_to.active_element.get_attribute("aria-pressed") == "true"


def test_a_flipped_byte_of_the_payload_is_noticed(open_page):
    story = book_story()
    page = render_page(story)
    section = payload(page)["sections"][0]
    text = section["numbers"]["scores"]["values"][""]
    content = bytearray(base64.b64decode(text))
    content[40] ^= 1
    damaged = page.replace(text, base64.b64encode(content).decode())
    assert damaged != page
    with pytest.raises(AssertionError):
        check_section(open_page(damaged), section, expected(story)["simple"], 6)


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


def test_without_javascript_the_tables_stand_there(open_page):
    page = render_page(book_story())
    cells = re.findall(r'<td data-value="([^"]+)">([^<]+)</td>', page)
    assert len(cells) > 500
    assert all(text == shown(float(value)) for value, text in cells)
    browser = open_page(page, script=False)
    assert browser.find_element("css selector", "#simple table").is_displayed()
    assert not browser.find_element("css selector", "#simple .controls").is_displayed()


@pytest.mark.parametrize("text", [STRANGE, "one one one one", "a b"])
def test_any_tokens_are_shown_as_they_are_and_nothing_is_fetched_or_complained_of(open_page, text):
    browser = open_page(render_page(drawn_story(text, 1)))
    labels = [
        each.get_attribute("textContent")
        for each in browser.find_elements("css selector", "#simple [data-choice=query] label")
    ]
    assert labels == text.split()
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert urls == {browser.current_url}
    assert browser.get_log("browser") == []


def test_the_keyboard_reaches_everything(open_page):
    from selenium.webdriver.common.keys import Keys

    browser = open_page(render_page(drawn_story("a small fox", 0)))
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
    radio = browser.find_element("css selector", "#simple [data-choice=query] input:checked")
    radio.send_keys(Keys.ARROW_RIGHT)
    assert (
        browser.execute_script("return document.querySelector('#simple [data-choice=query] input:checked').value")
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
def test_nobody_is_shut_out(open_page, width, dark):
    axe = pytest.importorskip("axe_core_python", reason="judges accessibility: install the extra browser")
    browser = open_page(render_page(book_story()), width, dark)
    browser.execute_script((Path(axe.__file__).parent / "axe.min.js").read_text())
    result = browser.execute_async_script("axe.run().then(arguments[0])")
    assert [(v["id"], [n["html"][:150] for n in v["nodes"][:3]]) for v in result["violations"]] == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_pictures_of_the_page_show_its_weights(open_page, run, tmp_path, width, dark):
    """JAXATTN_PICTURES names a directory in which they stay, JAXATTN_RUN a run to show: so the README's was made."""
    story = run_story(os.environ.get("JAXATTN_RUN", run), None if "JAXATTN_RUN" in os.environ else "a fox", 0)
    browser = open_page(render_page(story), width, dark)
    box = "const [a, b] = ['#trained', '#trained .view'].map((part) => document.querySelector(part)"
    clip = browser.execute_script(
        f"{box}.getBoundingClientRect()); return {{ x: 0, y: a.top, width: innerWidth, height: b.bottom - a.top + 20 }}"
    )
    options = {"clip": {**clip, "scale": 1}, "captureBeyondViewport": True}
    path = Path(os.environ.get("JAXATTN_PICTURES", tmp_path)) / f"guide-{width}-{'dark' if dark else 'light'}.png"
    path.write_bytes(base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", options)["data"]))
    picture = np.asarray(pytest.importorskip("matplotlib.image", reason="install the extra plot").imread(path))
    colours = {tuple(colour) for colour in np.round(255 * picture[..., :3]).astype(int).reshape(-1, 3)}
    assert (253, 231, 37) in colours  # viridis's end: the first token sees itself alone


def test_the_theme_can_be_chosen(open_page):
    browser = open_page(render_page(book_story()))
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = browser.execute_script(colour)
    browser.find_element("id", "theme").click()
    assert browser.execute_script(colour) != light


def test_the_same_seed_gives_the_same_bytes_within_the_limits():
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    page = render_page(drawn_story(text, 5))
    assert page == render_page(drawn_story(text, 5)) != render_page(drawn_story(text, 6))
    assert len(page.encode()) < 1_500_000
    for text, words in (("one", "write two words"), (" ".join(["many"] * 25), "--plots")):
        with pytest.raises(ValueError, match=f"shows 2 to 24.*{words}"):
            drawn_story(text, 0)
