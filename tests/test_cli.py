"""The console command."""

import math
import pkgutil
import re
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
import types
from pathlib import Path

import pytest

from jaxattn import cli
from jaxattn.files import write_whole


@pytest.fixture(autouse=True)
def own_signals(monkeypatch):
    """Keep the signal handlers of the test run."""
    monkeypatch.setattr(cli, "on_stop_signal", lambda react: None)


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


@pytest.mark.slow
def test_the_command_trains_as_the_script_does(tmp_path):
    (tmp_path / "text").write_text("the old dog " * 100)
    sizes = ["--layers", "1", "--heads", "1", "--width", "4", "--context-length", "8", "--batch-size", "2"]
    program = "import sys; from jaxattn.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "train", "--text", tmp_path / "text", *sizes, "--steps", "1"]
    command += ["--learning-rate", "1e-4"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 1, finished.stderr
    assert finished.stdout.splitlines()[-1].startswith("The model did not learn")
    before, after = re.findall(r"held-out loss (?:before|after) +(\S+) nats", finished.stdout)
    assert before != after  # one step trains, too


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_at_once_in_one_sentence_even_while_it_runs_no_python(number):
    """The key is derived in C for a minute, as XLA compiles; Python's own handlers would wait for that."""
    program = """
        import hashlib, sys, types
        from jaxattn import cli
        assert "jax" not in sys.modules  # the signals are handled before the imports, which take seconds
        work = lambda argv: print("started", flush=True) or hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)
        sys.modules[cli.COMMANDS["guide"][0]] = types.SimpleNamespace(main=work)
        cli.main(["guide"])
    """
    command, pipe = [sys.executable, "-c", textwrap.dedent(program)], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline() == "started\n"
        sent = time.perf_counter()
        process.send_signal(number)
        assert process.stderr.read() == "jaxattn guide: interrupted; what was saved before is intact\n"
        assert time.perf_counter() - sent < 10
    assert process.returncode == 128 + number


@pytest.mark.parametrize("name", cli.COMMANDS)
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(2, "No such file or directory", "a\x1b.txt"), r"a\x1b.txt: No such file or directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("two\nlines"), "two lines"),
        (RuntimeError("what is wrong\nwhat developers want to know"), "what is wrong"),
        (RuntimeError("Unable to initialize backend 'x': why (set y)"), "JAX_PLATFORMS=x cannot be used (Unable to"),
        (OverflowError("too large"), "too large"),
        (MemoryError(), "there is not enough memory (MemoryError)"),
        (ImportError("no module"), "no module"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_of_any_command_is_one_line_and_status_2(name, error, line, monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "x")

    def fail(argv):
        raise error

    monkeypatch.setitem(sys.modules, cli.COMMANDS[name][0], types.SimpleNamespace(main=fail))
    assert cli.main([name]) == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith(f"jaxattn {name}: {line}")
    assert "[Errno" not in printed


def test_an_error_in_the_code_is_not_hidden(monkeypatch):
    monkeypatch.setitem(sys.modules, cli.COMMANDS["guide"][0], types.SimpleNamespace(main=lambda argv: {}["x"]))
    with pytest.raises(KeyError):
        cli.main(["guide"])


def test_commands_are_printed_as_they_were_typed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("scripts/train.py", "scripts/generate.py", ".venv/bin/python", "my venv/bin/jaxattn", "bin/jaxattn"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(tmp_path / name, b"")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for script, expected in (
        ("scripts/train.py", ".venv/bin/python scripts/generate.py"),
        ("my venv/bin/jaxattn", "'my venv/bin/jaxattn' generate"),
        (str(tmp_path / "bin/jaxattn"), "jaxattn generate"),
        ("-c", "jaxattn generate"),
    ):
        monkeypatch.setattr(sys, "argv", [script])
        assert cli.typed("generate") == expected


@pytest.mark.parametrize("number", [math.nan, -1, 2**31, math.inf, 10**400])
def test_a_number_out_of_range_is_named_with_the_range(number):
    with pytest.raises(ValueError, match=f"--size is {number}, but must be from 0 to 2147483647"):
        cli.check_number("--size", number, 0)


def test_the_package_declares_the_command():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert pkgutil.resolve_name(project["scripts"]["jaxattn"]) is cli.main
