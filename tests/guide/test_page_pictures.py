"""Pictures of the page, such as the README's."""

import base64
import os
from pathlib import Path

import numpy as np
import pytest

from jaxattn.guide.page import render_page
from jaxattn.guide.trained import trained_story


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_pictures_of_the_page_show_its_weights(open_page, run, tmp_path, width, dark):
    """JAXATTN_PICTURES names a directory to keep them in, JAXATTN_RUN a run to show; the README's picture is one."""
    story = trained_story(os.environ.get("JAXATTN_RUN", run), None if "JAXATTN_RUN" in os.environ else "my fox", 0)
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
    assert (253, 231, 37) in colours  # the end of viridis: the first token attends to itself alone
