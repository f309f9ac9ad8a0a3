import pytest

from jaxattn.guide.command import main


def test_a_page_is_written(tmp_path, capsys):
    page = tmp_path / "guide.html"
    assert main(["--text", "the quick fox", "--out", str(page)]) == 0
    assert "quick" in page.read_text(encoding="utf-8")
    assert capsys.readouterr().out == f"{page}: open it in a browser\n"


@pytest.mark.slow
def test_a_trained_run_can_be_shown(tmp_path, run):
    page = tmp_path / "guide.html"
    assert main(["--run", run, "--text", "my fox", "--out", str(page)]) == 0
    assert "A trained model" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_plots_of_a_text_of_any_length_are_saved(tmp_path, run, capsys):
    pytest.importorskip("matplotlib", reason="draws: install the extra plot")
    assert main(["--run", run, "--text", "my fox", "--plots", str(tmp_path)]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert {"1_simple_weights.png", "4_parallel_masked.svg", "trained_1_weights.pdf"} <= names
    assert f"{len(names) // 3} figures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--text", "fox " * 30], "--plots DIR"),
        (["--text", "two words", "--seed", "-1"], "--seed is -1"),
        (["--out", "no/such/folder/guide.html"], "--out no/such/folder/guide.html"),
        (["--run", "no/such/run"], "no/such/run"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(options, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(options) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert len(printed.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
