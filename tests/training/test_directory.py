import dataclasses
import subprocess
import sys
import textwrap

import pytest

from jaxattn.training.config import TrainConfig
from jaxattn.training.directory import fingerprints, open_directory, saved_config


@pytest.fixture
def begun(tmp_path):
    """The configuration of a run that has saved something."""
    config = TrainConfig(text=("a.txt",), steps=7, out=str(tmp_path / "run"))
    directory = open_directory(config, ["1-a"], resume=False)
    (directory / "checkpoints" / "5").mkdir(parents=True)
    return config


def test_a_run_is_found_again(begun):
    assert saved_config(begun.out) == begun
    elsewhere = dataclasses.replace(begun, text=("moved/a.txt",), mesh="data=2", save_every=3)
    assert str(open_directory(elsewhere, ["1-a"], resume=True)) == begun.out
    assert saved_config(begun.out) == elsewhere


def test_a_run_is_not_overwritten(begun):
    with pytest.raises(ValueError, match=r"holds this run already: add --resume"):
        open_directory(begun, ["1-a"], resume=False)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("change", "texts", "words"),
    [
        ({"steps": 8}, ["1-a"], "--steps 7, not 8"),
        ({"seed": 1, "width": 64}, ["1-a"], "--width 128, not 64.*--seed 0, not 1"),
        ({}, ["2-b"], "--text"),
    ],
)
def test_another_run_is_refused_by_what_differs(begun, change, texts, words, resume):
    with pytest.raises(ValueError, match=f"holds another run, with .*{words}"):
        open_directory(dataclasses.replace(begun, **change), texts, resume)
    assert saved_config(begun.out) == begun


def test_a_directory_in_which_nothing_was_learned_is_taken_over(tmp_path):
    config = TrainConfig(out=str(tmp_path))
    open_directory(config, ["1-a"], resume=False)
    (tmp_path / "tokens").mkdir()
    other = dataclasses.replace(config, steps=3)
    open_directory(other, ["2-b"], resume=False)
    assert saved_config(str(tmp_path)) == other
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokens", "checkpoints/9"])
def test_a_directory_that_holds_what_no_run_left_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"precious")
    for _ in range(2):
        with pytest.raises(ValueError, match=f"holds {name.partition('/')[0]}, which no run of this script left there"):
            open_directory(TrainConfig(out=str(tmp_path)), [], resume=False)
    assert (tmp_path / name).read_bytes() == b"precious"


def test_two_processes_do_not_write_to_one_directory(begun):
    program = f"""
        from jaxattn.training.directory import open_directory, saved_config
        open_directory(saved_config({begun.out!r}), ["1-a"], resume=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert "is being written by another process" in finished.stderr
    open_directory(begun, ["1-a"], resume=True)  # this one may again


def test_a_directory_without_a_run_cannot_be_gone_on_with(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run to go on with: leave --resume out"):
        saved_config(str(tmp_path))


def test_a_damaged_file_is_named(begun):
    with open(f"{begun.out}/run.json", "w") as file:
        file.write('{"config": {"no such": 1}, "texts": []}')
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        saved_config(begun.out)


def test_fingerprints_tell_texts_apart(tmp_path):
    contents = [b"", b"a", b"b", b"a" * 300_000, b"a" * 299_999 + b"b", b"b" + b"a" * 299_999]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    prints = fingerprints([tmp_path / str(number) for number in range(len(contents))])
    assert len(set(prints)) == len(contents)
