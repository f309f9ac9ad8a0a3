import dataclasses
import subprocess
import sys
import textwrap

import pytest

from jaxattn.training.config import TrainConfig
from jaxattn.training.directory import open_directory, saved_config
from jaxattn.training.recovery import LAST, check_steps, is_complete


@pytest.fixture
def started(tmp_path):
    """The configuration of a run that has saved a checkpoint."""
    config = TrainConfig(text=("a.txt",), steps=7, out=str(tmp_path / "run"))
    open_directory(config, ["1-a"], resume=False)
    (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
    return config


def test_a_run_is_resumed_with_other_devices_and_moved_texts(started):
    assert saved_config(started.out) == started
    elsewhere = dataclasses.replace(started, text=("moved/a.txt",), mesh="data=2", save_every=3)
    open_directory(elsewhere, ["1-a"], resume=True)
    assert saved_config(started.out) == elsewhere


def test_a_run_is_resumed_to_more_steps(started):
    longer = dataclasses.replace(started, steps=9)
    with pytest.raises(ValueError, match="add --resume to continue it"):
        open_directory(longer, ["1-a"], resume=False)
    open_directory(longer, ["1-a"], resume=True)
    assert saved_config(started.out).steps == 9


@pytest.mark.parametrize(
    ("steps", "resume", "words"),
    [
        (4, LAST, r"--steps is 4, but the run in \S+ has done 5 already: write --steps 10, .* checkpoints, 5"),
        (7, 4, "--resume 4: there is no complete checkpoint of that step, only 5"),
    ],
)
def test_steps_that_cannot_be_resumed_are_named(started, steps, resume, words):
    with pytest.raises(ValueError, match=words):
        check_steps(dataclasses.replace(started, steps=steps), resume)


def test_a_run_is_complete_once_its_last_checkpoint_and_model_are_saved(started, tmp_path):
    config, directory = dataclasses.replace(started, steps=5), tmp_path / "run"
    open_directory(config, ["1-a"], resume=True)
    assert not is_complete(config, LAST)
    (directory / "model.safetensors").touch()
    (directory / "config.json").write_text('{"step": 4}')  # saved when the run was stopped before
    assert not is_complete(config, LAST)
    (directory / "config.json").write_text('{"step": 5}')
    assert is_complete(config, LAST)
    assert is_complete(config, 5)
    assert not is_complete(dataclasses.replace(config, steps=6), LAST)
    assert not is_complete(dataclasses.replace(config, width=64), LAST)
    (directory / "checkpoints" / "9").mkdir()
    assert not is_complete(config, 5)  # later steps are to be undone


def test_a_run_is_never_overwritten(started):
    with pytest.raises(ValueError, match=r"holds this run already: add --resume"):
        open_directory(started, ["1-a"], resume=False)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("change", "texts", "words"),
    [
        ({"batch_size": 8}, ["1-a"], "--batch-size 16, not 8"),
        ({"seed": 1, "width": 64}, ["1-a"], "--width 128, not 64.*--seed 0, not 1"),
        ({}, ["1-b"], "--text a.txt, which has changed since.*put the text back as it was to continue it with"),
        ({}, ["1-a", "1-a"], "a --text of 1 files, not 2"),
    ],
)
def test_another_run_is_refused_by_naming_the_differences(started, change, texts, words, resume):
    with pytest.raises(ValueError, match=f"holds another run, with .*{words}"):
        open_directory(dataclasses.replace(started, **change), texts, resume)
    assert saved_config(started.out) == started


def test_a_directory_without_checkpoints_is_taken_over(tmp_path):
    config = TrainConfig(out=str(tmp_path))
    open_directory(config, ["1-a"], resume=False)
    (tmp_path / "tokens").mkdir()
    other = dataclasses.replace(config, steps=3)
    open_directory(other, ["2-b"], resume=False)
    assert saved_config(str(tmp_path)) == other
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokens", "checkpoints/9"])
def test_a_directory_with_foreign_files_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"precious")
    for _ in range(2):
        with pytest.raises(ValueError, match=f"holds {name.partition('/')[0]}, which no training run has left there"):
            open_directory(TrainConfig(out=str(tmp_path)), [], resume=False)
    assert (tmp_path / name).read_bytes() == b"precious"


def test_two_processes_cannot_use_one_directory(started):
    program = f"""
        from jaxattn.training.directory import open_directory, saved_config
        open_directory(saved_config({started.out!r}), ["1-a"], resume=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert "is in use by another training process" in finished.stderr
    open_directory(started, ["1-a"], resume=True)  # the process that holds the lock may


def test_a_missing_filelock_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "filelock", None)
    with pytest.raises(ImportError, match=r"filelock is not installed.*jaxattn\[train\]"):
        open_directory(TrainConfig(out=str(tmp_path)), [], resume=False)


def test_a_directory_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run to resume: leave --resume out"):
        saved_config(str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        '{"config": {"no such": 1}, "texts": []}',
        '{"config": {"text": [1]}, "texts": []}',
        '{"config": {"text": [], "steps": 1.5}, "texts": []}',
        '{"config": {"text": [], "steps": true}, "texts": []}',
        '{"config": {"text": [], "mesh": 3}, "texts": []}',
        '{"config": {"text": [], "layers": 1000000000}, "texts": []}',
        '{"config": {"text": []}, "texts": [1]}',
        "[]",
        "[" * 100_000,
    ],
    ids=lambda content: content[:60],
)
def test_a_damaged_file_is_named(started, content):
    with open(f"{started.out}/run.json", "w") as file:
        file.write(content)
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        saved_config(started.out)
