import dataclasses
import json
import re
import sys
import types
from pathlib import Path

import pytest

from jaxattn import GPTConfig
from jaxattn.tasks import TASKS, Data, Task
from jaxattn.tasks.text import TASK as TEXT
from jaxattn.training.ablation import check_ablation
from jaxattn.training.command import EXAMPLES, parse
from jaxattn.training.config import TrainConfig
from jaxattn.training.run import Run


def config(*arguments):
    return parse([str(argument) for argument in arguments])[1]


@pytest.fixture
def saved(tmp_path):
    """A configuration, saved as a run saves it."""
    saved = TrainConfig(text=("a",), steps=3, width=64, remat=True, out=str(tmp_path))
    (tmp_path / "run.json").write_text(json.dumps({"config": dataclasses.asdict(saved), "texts": []}))
    return saved


def test_options_are_fields_of_the_configuration():
    assert config() == TrainConfig()
    given = config("--text", "a", "b", "--steps", 3, "--dropout", 0.5, "--remat", "--mesh", "data=2,model=2")
    assert given == TrainConfig(text=("a", "b"), steps=3, dropout=0.5, remat=True, mesh="data=2,model=2")


def test_options_that_are_not_given_are_those_of_the_saved_run(saved):
    assert config("--resume", "--out", saved.out) == saved
    changed = config("--width", 32, "--mesh", "data=2", "--no-remat", "--out", saved.out, "--resume", 7)
    assert not changed.remat
    assert saved.differences(changed) == ["--width 64, not 32"]
    assert parse(["--out", saved.out, "--resume", "7"])[0].resume == 7
    assert parse(["--out", saved.out, "--resume"])[0].resume == -1


def test_options_that_are_not_given_are_those_of_the_tasks_preset():
    preset = TrainConfig(
        task="pronouns", recipe="gpt2", context_length=64, learning_rate=3e-3, layers=2, heads=4, batch_size=32,
        steps=2000, save_every=500,
    )  # fmt: skip
    assert config("--task", "pronouns") == preset
    assert config("--task", "pronouns", "--steps", 5) == dataclasses.replace(preset, steps=5)


def test_the_sizes_of_gpt2s_recipe_are_those_of_earlier_versions():
    sizes = {"context_length": 64, "batch_size": 16, "learning_rate": 3e-3, "steps": 1000}
    assert config("--recipe", "gpt2") == TrainConfig(recipe="gpt2", **sizes)
    assert config("--recipe", "gpt2").model(256) == GPTConfig(256, 64, 4, 4, 128)
    assert config("--task", "pronouns", "--recipe", "fast").recipe == "fast"


def test_a_run_of_a_version_without_recipes_continues_as_gpt2s(saved):
    file = Path(saved.out) / "run.json"
    content = json.loads(file.read_text())
    del content["config"]["recipe"]
    file.write_text(json.dumps(content))
    assert config("--resume", "--out", saved.out) == dataclasses.replace(saved, recipe="gpt2")


def test_help_shows_the_defaults_that_hold(capsys, saved):
    for arguments, words in ((["--task", "pronouns"], "training steps (default: 2000)"), ([], "(default: 1200)")):
        with pytest.raises(SystemExit, match="0"):
            parse([*arguments, "--help"])
        assert words in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        parse(["--out", saved.out, "--resume", "--help"])
    assert "training steps (default: 3)" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_is_grouped_has_examples_and_is_as_wide_as_the_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit, match="0"):
        parse(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert columns - 12 < max(map(len, lines)) <= columns
    titles = [line[:-1] for line in lines if re.fullmatch(r"[a-z ]+:", line)]
    assert titles[:3] == ["examples", "options", "what to learn"]
    assert len(titles) == len(set(titles)) == 9
    assert "  jaxattn train --text book.txt --out runs/book" in lines


def test_the_examples_of_the_help_are_commands_that_are_understood(saved):
    for command, _ in EXAMPLES:
        words = command.removeprefix("jaxattn train ").replace("runs/book --resume", f"{saved.out} --resume").split()
        options, _ = parse(words)
        if options.ablate:
            check_ablation(parse(words)[1], options.ablate, resumes=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", 0], "--steps is 0"),
        (["--heads", 3], "--width 129"),
        (["--dropout", 1], "dropout_rate=1.0"),
        (["--learning-rate", "nan"], "--learning-rate is nan"),
        (["--dtype", "int8"], "--dtype is 'int8', but must be float32 or bfloat16"),
        (["--mesh", "rows=2"], "'rows=2' is not understood"),
        (["--mesh", "data=0"], "'data=0' is not understood"),
        (["--tensorboard"], "--out DIR"),
        (["--task", "chess"], "--task is 'chess', but must be one of text, pronouns, copy"),
        (["--vocab-size", 300], "--vocab-size 300 is only for --tokenizer bpe"),
        (["--out", "dir\udce9"], "cannot be shown"),
        (["--task", "pronouns", "--text", "a"], "leave --text"),
        (["--task", "pronouns", "--context-length", 16], "write --context-length 27 or more"),
        (["--task", "copy", "--tokenizer", "bpe"], "--task copy makes its own text and tokenizer"),
        (["--task", "copy", "--context-length", 16], "write --context-length 26 or more"),
        (["--resume"], "name its directory with --out DIR"),
    ],
)
def test_invalid_options_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        config(*arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stps", "5"], "--stps is not an option: did you mean --steps?"),
        (["--nothing-like-it"], "--nothing-like-it is not an option: --help lists the options"),
        (["--steps", "x"], "argument --steps: invalid int value: 'x'"),
        (["--task"], "argument --task: expected one argument"),
        (["--ablate", "norms"], "argument --ablate: invalid choice: 'norms'"),
    ],
)
def test_a_misspelled_option_is_one_sentence(arguments, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"jaxattn train: {words}")


def test_a_task_is_one_module_and_one_line_of_the_registry(monkeypatch, tmp_path, capsys):
    class Letters(Task):
        preset = types.MappingProxyType({"layers": 1, "width": 8, "heads": 2, "context_length": 8, "steps": 2})

        def open_data(self, config, directory) -> Data:
            (directory / "letters").write_bytes(bytes(range(97, 123)) * 20)
            return TEXT.open_data(dataclasses.replace(config, text=(str(directory / "letters"),)), directory)

        def report(self, config, model, params, directory):
            return f"{model.config.num_layers} layer learned the alphabet"

    monkeypatch.setitem(sys.modules, "letters_task", types.SimpleNamespace(TASK=Letters()))
    monkeypatch.setitem(TASKS, "letters", "letters_task")
    Run(config("--task", "letters", "--mesh", "data=1")).train()
    assert "1 layer learned the alphabet" in capsys.readouterr().out
