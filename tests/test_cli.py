"""The console command."""

import pkgutil
import signal
import subprocess
import sys
import textwrap
import tomllib
import types
from pathlib import Path

import pytest

from jaxattn import cli


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(arguments, capsys):
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert all(f"jaxattn {name} " in printed for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("name", "words"), [("trian", "did you mean jaxattn train?"), ("sing", "write jaxattn train, generate")]
)
def test_an_unknown_command_is_one_sentence(name, words, capsys):
    assert cli.main([name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name} is not a command" in line
    assert words in line


@pytest.mark.parametrize("name", ["generate", "guide", "benchmark"])
def test_a_command_gets_its_arguments_and_returns_its_status(name, monkeypatch):
    calls = []
    module = types.SimpleNamespace(main=lambda argv: calls.append(argv) or 7)
    monkeypatch.setitem(sys.modules, cli.COMMANDS[name][0], module)
    assert cli.main([name, "--out", "x"]) == 7
    assert calls == [["--out", "x"]]


def test_the_command_trains_as_the_script_does(tmp_path):
    (tmp_path / "text").write_text("the old dog " * 100)
    sizes = ["--layers", "1", "--heads", "1", "--width", "4", "--context-length", "8", "--batch-size", "2"]
    program = "import sys; from jaxattn.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "train", "--text", tmp_path / "text", *sizes, "--steps", "1"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 1, finished.stderr
    assert finished.stdout.splitlines()[-1].startswith("The model did not learn")


def test_a_signal_outside_of_training_ends_the_command_in_one_sentence():
    program = """
        import sys, time, types
        from jaxattn import cli
        slow = types.SimpleNamespace(main=lambda argv: print("started", flush=True) or time.sleep(60))
        sys.modules[cli.COMMANDS["train"][0]] = slow
        cli.main(["train"])
    """
    command, pipe = [sys.executable, "-c", textwrap.dedent(program)], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline() == "started\n"
        process.terminate()
        assert process.stderr.read() == "jaxattn train: interrupted; what was saved before is intact\n"
    assert process.returncode == 128 + signal.SIGTERM


def test_the_package_declares_the_command():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert pkgutil.resolve_name(project["scripts"]["jaxattn"]) is cli.main
