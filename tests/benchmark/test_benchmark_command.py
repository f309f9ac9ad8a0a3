import json

import pytest

from jaxattn.benchmark.command import main

SMALL = ["--lengths", "8", "--batch-sizes", "2", "--heads", "2", "--head-width", "4", "--seconds", "0"]


@pytest.mark.slow
def test_figures_are_printed_and_kept(tmp_path, capsys):
    files = [tmp_path / "figures.json", tmp_path / "tables.md"]
    options = ["--masks", "causal", "window", "--implementations", "blockwise"]
    assert main([*SMALL, *options, "--json", str(files[0]), "--markdown", str(files[1])]) == 0
    report = json.loads(files[0].read_text())
    assert report["matmul_gflops"] > 0
    assert report["machine"]["jax"]
    rows = {(row["direction"], row["T"], row["group"], row.get("mask"), row["name"]): row for row in report["rows"]}
    for direction in ("forward", "forward+backward"):
        for mask in ("causal", "window"):
            assert rows[direction, 8, "attention", mask, "jaxattn blockwise"]["of_matmul"] > 0
        assert (direction, 8, "4 multi-head, causal", None, "flax.linen") in rows
    assert all(row["seconds"] > 0 and row["difference"] < 1e-4 for row in report["rows"])
    assert "| T=8, B=2 |" in files[1].read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert printed.count("\nforward+backward, B=2 T=8 H=2 D=4\n") == 1
    assert printed.count("jaxattn blockwise") == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lengths", "0"], "--lengths"),
        (["--json", "no/such/folder/figures.json"], "--json no/such/folder/figures.json"),
        (["--plot", "picture"], "write picture.png"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence_before_anything_is_measured(options, words, capsys):
    assert main([*SMALL, *options]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert printed.out == ""
