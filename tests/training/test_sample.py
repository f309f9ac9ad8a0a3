import re

import pytest

from jaxattn.training.evaluation import choices
from jaxattn.training.sample import Sample, recorded_samples, sample_table, write_samples

SAMPLES = [Sample(0, 5.6133, "\n<b>~Q&"), Sample(10, 2.4, "dog " * 60), Sample(12, 1.2, "")]


def test_samples_of_growing_steps_and_the_last_one_are_read_from_the_log():
    steps = [0, 7, 10, 14, 21, 28]
    records = [{"step": step, "held_out_loss": 1.0, "sample": str(step)} for step in steps]
    records += [{"step": 28, "loss": 1.0}, {"step": 30, "held_out_loss": None, "sample": "x"}]
    assert recorded_samples(records) == [Sample(step, 1.0, str(step)) for step in (0, 10, 28)]
    assert recorded_samples([]) == []


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_table_of_samples_is_as_wide_as_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    _, header, *lines = sample_table("the 'old'\n", SAMPLES, "byte").splitlines()
    assert header.split() == ["step", "loss", "like", "1", "of", "sample"]
    assert max(map(len, lines)) == columns
    assert lines[0].split()[:5] == ["0", "5.61", "274", "bytes", r"\n<b>~Q&"]
    assert len(lines) == 4  # the long text has two lines, the second cut off
    assert lines[2].endswith("…")


def test_the_page_of_samples_holds_every_text_as_it_was_written(tmp_path):
    write_samples(tmp_path, "the <old>", SAMPLES, "byte")
    page = (tmp_path / "samples.html").read_text()
    assert re.findall(r"<h2>step (\d+)</h2>", page) == ["0", "10", "12"]
    assert "<pre>the &lt;old&gt;</pre>" in page
    assert "<pre>\n&lt;b&gt;~Q&amp;</pre>" in page


@pytest.mark.parametrize(
    ("loss", "words"),
    [(0, "1.00"), (1.81, "6.11"), (5.5452, "256"), (9.0, "8103"), (800, "1e+304"), (float("nan"), "nan")],
)
def test_a_loss_is_like_choosing_among_e_to_the_loss_tokens(loss, words):
    assert choices(loss) == words
