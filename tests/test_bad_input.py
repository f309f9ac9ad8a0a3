"""What a person may get wrong in any command: one sentence and status 2, before the work starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxattn.benchmark.command import main as benchmark
from jaxattn.cli import run_command
from jaxattn.guide.command import main as guide
from jaxattn.models.command import main as generate
from jaxattn.training.command import train

COMMANDS = {
    "train": lambda argv: run_command("train", lambda: train(argv)),
    "generate": generate,
    "guide": guide,
    "benchmark": benchmark,
}
SMALL = ["--layers", "1", "--heads", "2", "--width", "4", "--context-length", "4", "--batch-size", "2"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a text, a directory, a stream and a link that leads to itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxattn.training.command.use_all_cores", lambda: None)  # this process has its devices
    Path("text").write_text("the old dog " * 100)
    Path("directory").mkdir()
    os.mkfifo("stream")
    Path("loop").symlink_to("loop")
    return tmp_path


CASES = [
    # files and directories to read
    ("train --text missing", "--text missing does not exist"),
    ("train --text directory", "--text directory is a directory"),
    ("train --text stream", "--text stream is a stream"),
    ("train --text loop", "--text loop: Too many levels"),
    ("train --text text --tokenizer missing", "the tokenizer missing does not exist"),
    ("train --text text --tokenizer stream", "the tokenizer stream is a stream"),
    ("train --text text --tokenizer text", "text is damaged or not a tokenizer"),
    ("train --resume --out directory", "directory holds no run to resume"),
    ("generate missing", "missing holds no trained model, as there is no config.json"),
    ("generate text", "text holds no trained model"),
    ("generate --gpt2 directory", "--gpt2 directory/tokenizer.json does not exist"),
    ("generate --gpt2 text", "--gpt2 text/tokenizer.json: Not a directory"),
    ("guide --run directory", "directory holds no trained model"),
    # files and directories to write
    ("train --text text --out text", "--out text is not a directory"),
    ("train --text text --out stream", "--out stream is not a directory"),
    ("train --text text --out text/run", "--out text/run: Not a directory"),
    ("guide --out stream", "--out stream is a stream"),
    ("guide --out /dev/null", "--out /dev/null is a device"),
    ("guide --out directory", "--out directory is a directory"),
    ("guide --out missing/page", "--out missing/page is not in an existing folder"),
    ("guide --out loop", "--out loop: Too many levels"),
    ("guide --plots text", "--plots text is not a directory"),
    ("benchmark --json directory", "--json directory is a directory"),
    ("benchmark --json /dev/null", "--json /dev/null is a device"),
    ("benchmark --markdown stream", "--markdown stream is a stream"),
    ("benchmark --plot directory", "--plot directory is a directory"),
    ("benchmark --json new --markdown new", "--json and --markdown name one file"),
    # numbers
    ("train --text text --seed 4294967296", "--seed is 4294967296, but must be from 0 to 4294967295"),
    ("train --text text --seed 18446744073709551616", "--seed is 18446744073709551616"),
    ("train --text text --steps 2147483648", "--steps is 2147483648, but must be from 1 to 2147483647"),
    ("train --text text --layers 1000000000", "--layers is 1000000000, but must be from 1 to 1000"),
    ("train --text text --width 2000000000", "this run needs at least"),
    ("train --text text --batch-size 2000000000", "this run needs at least"),
    ("train --text text --learning-rate inf", "--learning-rate is inf, but must be from 0 to"),
    ("train --text text --dropout nan", "dropout_rate=nan"),
    ("train --text text --save-every 99999999999", "--save-every is 99999999999"),
    ("train --text text --mesh data=99999999999999999999", "is not understood"),
    ("train --text text --coordinator here --processes 2 --process 0", "--coordinator is here, but must be HOST:PORT"),
    ("train --text text --coordinator h:1 --processes 2 --process 2", "--process is 2, but must be from 0 to 1"),
    ("generate directory --seed 18446744073709551616", "--seed is 18446744073709551616"),
    ("generate directory --seed -1", "--seed is -1"),
    ("generate directory --tokens 1000000000000", "--tokens is 1000000000000, but must be from 0 to 1000000"),
    ("generate directory --tokens -1", "--tokens is -1"),
    ("generate directory --temperature nan", "--temperature is nan"),
    ("generate directory --top-k 0", "--top-k is 0"),
    ("generate directory --top-p nan", "--top-p is nan"),
    ("guide --seed 18446744073709551616", "--seed is 18446744073709551616"),
    ("guide --seed -1", "--seed is -1"),
    ("benchmark --seconds nan", "--seconds is nan, but must be from 0 to 86400"),
    ("benchmark --seconds inf", "--seconds is inf"),
    ("benchmark --seconds -1", "--seconds is -1"),
    ("benchmark --heads 0", "--heads is 0"),
    ("benchmark --batch-sizes 1 99999999999", "--batch-sizes is 99999999999"),
    ("benchmark --lengths 1000000000", "GB of memory"),
    # contradictions
    ("generate", "name one model: "),
    ("train --out", "argument --out: expected one argument"),
    ("train --text text --resume -5 --out directory", "argument --resume: -5 is no step"),
    ("train --text text --resume -1 --out directory", "argument --resume: -1 is no step"),
    ("train --text text --resume 1e9 --out directory", "argument --resume: 1e9 is no step"),
]


@pytest.mark.parametrize(("line", "words"), CASES, ids=[line for line, _ in CASES])
def test_bad_input_is_one_sentence_before_the_work_starts(here, line, words, capsys):
    name, *argv = line.split()
    sizes = SMALL if name == "train" else []  # an option that is given again counts
    before = sorted(here.rglob("*"))
    try:
        status = COMMANDS[name]([*sizes, *argv])
    except SystemExit as exit:
        status = exit.code
    printed = capsys.readouterr()
    assert status == 2
    (sentence,) = printed.err.splitlines()
    assert words in sentence
    assert sentence.startswith(f"jaxattn {name}: ")
    assert not {"Traceback", "[Errno"} & set(sentence.split())
    assert printed.out == ""
    assert sorted(here.rglob("*")) == before  # nothing is left behind


@pytest.mark.parametrize("seed", [pytest.param(2**31, marks=pytest.mark.slow), 2**32 - 1])
def test_every_seed_of_32_bits_is_accepted(here, seed):
    assert guide(["--text", "two words", "--seed", str(seed)]) == 0


@pytest.mark.parametrize(
    ("name", "variable"), [("train", "JAX_PLATFORMS"), ("guide", "JAX_PLATFORMS"), ("guide", "JAX_ENABLE_X64")]
)
def test_a_bad_environment_of_jax_is_one_sentence(here, name, variable):
    program = "import sys; from jaxattn.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, name, *(["--text", "text"] if name == "train" else [])]
    environment = os.environ | {variable: "nonsense"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert finished.returncode == 2
    (sentence,) = finished.stderr.splitlines()
    assert "nonsense" in sentence
