"""A browser, the page in it, and a saved model to show."""

import os
import shutil

import jax
import jax.numpy as jnp
import pytest

from jaxattn import GPT, GPTConfig
from jaxattn.guide.page import render_page
from jaxattn.guide.story import book_story, random_story
from jaxattn.training.saving import save_model

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
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


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium; where JAXATTN_BROWSER is set, as it is in `.ci/run`, a missing browser is an error."""
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
    """Open a page at a width, in light or dark colours, with its script or without; transitions are off.

    While an equation fades in, Selenium reads its text as "", and how long it fades depends on how busy the machine is.
    """

    def open_it(page, width=1280, dark=False, script=True, motion=False):
        path = tmp_path / "guide.html"
        path.write_text(page, encoding="utf-8")
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "no-preference" if motion else "reduce"},
        ]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
        browser.get_log("browser"), browser.get_log("performance")
        browser.get(path.as_uri())
        return browser

    return open_it


@pytest.fixture(scope="session")
def book_page():
    """The default page, made once."""
    return render_page(book_story())


@pytest.fixture(scope="session")
def fox_page():
    """A page of a sentence of one's own."""
    return render_page(random_story("a small fox", 0))


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The directory of a model with random parameters, which reads bytes."""
    directory = tmp_path_factory.mktemp("run")
    config = GPTConfig(256, 16, 2, 2, 8)
    save_model(directory, config, GPT(config).init(jax.random.key(0), jnp.zeros(4, jnp.int32))["params"])
    return str(directory)
