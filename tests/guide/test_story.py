import pytest

from jaxattn.guide.page import render_page
from jaxattn.guide.story import random_story

TEXT = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"


@pytest.mark.slow
def test_the_same_seed_gives_the_same_page_and_another_seed_another():
    page = render_page(random_story(TEXT, 5))
    assert page == render_page(random_story(TEXT, 5)) != render_page(random_story(TEXT, 6))
    assert len(page.encode()) < 1_500_000


@pytest.mark.parametrize(("text", "words"), [("one", "write two words"), (" ".join(["many"] * 25), "--plots")])
def test_texts_that_are_too_short_or_too_long_are_refused(text, words):
    with pytest.raises(ValueError, match=f"shows 2 to 24.*{words}"):
        random_story(text, 0)
