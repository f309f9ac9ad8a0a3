import json
import math

import pytest

from jaxattn.training.journal import Journal, draw_curve, read_journal


@pytest.fixture
def written(tmp_path):
    journal = Journal(tmp_path, until=0)
    for step in range(1, 6):
        journal.write(step, loss=1 / step)
    journal.write(5, held_out_loss=0.5, sample="a fox")
    journal.close()
    return tmp_path


def test_every_record_is_one_line_of_json(written):
    records = [json.loads(line) for line in (written / "log.jsonl").read_text().splitlines()]
    assert records == read_journal(written)
    assert records[2] == {"step": 3, "loss": 1 / 3}
    assert records[-1] == {"step": 5, "held_out_loss": 0.5, "sample": "a fox"}


def test_a_resumed_run_drops_the_records_after_its_checkpoint(written):
    with open(written / "log.jsonl", "a", encoding="utf-8", errors="surrogateescape") as file:
        file.write('{"step": "x"}\n[1]\n\udcff\n{"step": 6, "lo')  # damaged, and cut off in the middle of a line
    journal = Journal(written, until=3)
    journal.write(4, loss=math.nan)
    journal.close()
    assert [record["step"] for record in read_journal(written)] == [1, 2, 3, 4]
    assert read_journal(written)[-1]["loss"] is None


def test_without_a_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Journal(None, until=0).write(1, loss=1.0)
    assert list(tmp_path.iterdir()) == []


def test_the_loss_curve_is_drawn_and_reproducible(written):
    draw_curve(written, "byte", bigram=0.75)
    first = (written / "loss.svg").read_bytes()
    assert b"held out" in first
    assert (written / "loss.png").read_bytes().startswith(b"\x89PNG")
    draw_curve(written, "byte", bigram=0.75)
    assert (written / "loss.svg").read_bytes() == first


def test_the_loss_curve_begins_before_the_first_step_and_names_the_bigram_line(tmp_path):
    journal = Journal(tmp_path, until=0)
    journal.write(0, held_out_loss=5.5)
    journal.write(1, loss=5.4)
    journal.close()
    draw_curve(tmp_path, "word", bigram=2.5)
    assert b"bigram 2.50, which knows only the current word" in (tmp_path / "loss.svg").read_bytes()
    draw_curve(tmp_path, "word")
    assert b"bigram" not in (tmp_path / "loss.svg").read_bytes()


def test_a_run_that_starts_again_keeps_no_record_of_step_0(written):
    for _ in range(2):
        journal = Journal(written, until=0)
        journal.write(0, held_out_loss=5.5)
        journal.close()
    assert read_journal(written) == [{"step": 0, "held_out_loss": 5.5}]


def test_tensorboard_records_the_numbers(tmp_path):
    pytest.importorskip("tensorboardX", reason="writes TensorBoard's files: install the extra tensorboard")
    journal = Journal(tmp_path, until=0, tensorboard=True)
    journal.write(1, loss=1.0, sample="not a number")
    journal.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in file.read_bytes()
