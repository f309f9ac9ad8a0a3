"""The scripts as a person runs them: exit status, last line, files."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

SCRIPTS = Path(__file__).parent.parent / "scripts"
SMALL = ["--layers", "1", "--heads", "2", "--width", "16", "--context-length", "16", "--batch-size", "4"]


def run(script, *arguments):
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(b"the old dog chased the quick fox \xff which bit him. " * 100)
    return path


def test_train_then_generate(text, tmp_path):
    out = tmp_path / "run"
    trained = run("train.py", "--text", text, *SMALL, "--steps", 40, "--dropout", 0.1, "--out", out)
    assert trained.returncode == 0, trained.stderr
    lines = trained.stdout.strip().splitlines()
    assert lines[-1].startswith("The model learned: its held-out loss fell from")
    for part in ("training", "held-out"):
        before, after = (
            float(re.search(rf"{part} loss {when} +([\d.]+) nats", trained.stdout)[1]) for when in ("before", "after")
        )
        assert after < before - 0.05
    assert re.search(r"bigram held-out loss +[\d.]+ nats", trained.stdout)
    assert re.search(r"[\d,]+ tokens/s on \w+", "\n".join(lines[-3:]))
    assert {"model.safetensors", "loss.png", "loss.svg", "log.jsonl", "checkpoints"} <= set(os.listdir(out))
    assert "\x1b" not in trained.stdout  # plain lines when piped

    texts = [run("generate.py", out, "--prompt", "the ", "--tokens", 20, "--seed", seed) for seed in (1, 1, 2)]
    assert all(sampled.returncode == 0 for sampled in texts)
    assert texts[0].stdout == texts[1].stdout != texts[2].stdout
    assert texts[0].stdout.startswith("the ")


@pytest.mark.slow
def test_a_run_that_does_not_learn_says_so_and_exits_1(text):
    trained = run("train.py", "--text", text, *SMALL, "--steps", 2, "--learning-rate", 0)
    assert trained.returncode == 1
    assert trained.stdout.strip().splitlines()[-1].startswith("The model did not learn")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train.py", "--text", "no such file"], "No such file"),
        (["train.py", "--steps", 0], "--steps is 0"),
        (["train.py", "--resume"], "name its directory with --out DIR"),
        (["train.py", "--stps", 5], "did you mean --steps?"),
        (["train.py", "--out", "/dev/null/run"], "Not a directory"),
    ],
)
def test_train_ends_with_one_sentence_on_an_error(arguments, words):
    finished = run(*arguments)
    assert finished.returncode == 2
    assert words in finished.stderr
    assert "Traceback" not in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1


@pytest.fixture
def gpt2(tmp_path):
    """A GPT-2 of random weights with a vocabulary of bytes."""
    tokenizers = pytest.importorskip("tokenizers", reason="reads GPT-2's vocabulary: install the extra gpt2")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, "<|endoftext|>"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    sizes = {"vocab_size": 257, "n_positions": 16, "n_layer": 1, "n_head": 2, "n_embd": 8}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"} | sizes))
    rng, E = np.random.default_rng(0), 8
    shapes = {"wte.weight": (257, E), "wpe.weight": (16, E), "h.0.attn.c_attn.weight": (E, 3 * E)}
    shapes |= {"h.0.attn.c_attn.bias": (3 * E,), "h.0.mlp.c_fc.weight": (E, 4 * E), "h.0.mlp.c_fc.bias": (4 * E,)}
    shapes |= {"h.0.attn.c_proj.weight": (E, E), "h.0.mlp.c_proj.weight": (4 * E, E)}
    for name in ("ln_f.weight", "ln_f.bias", "h.0.ln_1.weight", "h.0.ln_1.bias", "h.0.ln_2.weight", "h.0.ln_2.bias"):
        shapes[name] = (E,)
    shapes |= {"h.0.attn.c_proj.bias": (E,), "h.0.mlp.c_proj.bias": (E,)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(arrays, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.slow
def test_generate_continues_a_text_with_a_gpt2(gpt2):
    texts = [
        run("generate.py", "--gpt2", gpt2, "--prompt", "Ein Müßiggang ", "--tokens", 30, "--top-p", 0.9) for _ in "ab"
    ]
    assert texts[0].returncode == 0, texts[0].stderr
    assert texts[0].stdout == texts[1].stdout
    assert texts[0].stdout.startswith("Ein Müßiggang ")
    assert len(texts[0].stdout) > 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name one model"),
        (["--gpt2", "no/such/folder"], "no/such/folder/tokenizer.json does not exist"),
        (["no/such/run"], "no/such/run"),
    ],
)
def test_generate_ends_with_one_plain_sentence(arguments, words):
    finished = run("generate.py", *arguments)
    assert finished.returncode == 2
    assert words in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("script", ["benchmark.py", "guide.py"])
def test_a_script_runs_its_command(script):
    finished = run(script, "--help")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith(f"usage: jaxattn {script.removesuffix('.py')} ")
