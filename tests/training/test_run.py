"""Whole runs: interrupted in every way and resumed, on many devices, on texts larger than memory."""

import dataclasses
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from cases import and_slowly
from programs import SCRIPT, free_place, on_devices, options, records_of, wait_for_step

from jaxattn.training.command import train
from jaxattn.training.config import TrainConfig
from jaxattn.training.directory import saved_config
from jaxattn.training.evaluation import choices
from jaxattn.training.optimizer import linear_schedule
from jaxattn.training.recovery import LAST, DivergedError
from jaxattn.training.run import Run


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    rng = np.random.default_rng(0)
    path.write_text(
        " ".join(rng.choice(["the", "old", "dog", "chased", "a", "quick", "fox", "which", "bit", "him"], 3000))
    )
    return str(path)


@pytest.fixture
def small(text):
    """A configuration that trains quickly."""
    return TrainConfig(
        text=(text,), layers=1, heads=2, width=16, context_length=16, batch_size=4, dropout=0.1, steps=60, save_every=7,
        mesh="data=1",
    )  # fmt: skip


def start(*arguments):
    command = [sys.executable, "-u", str(SCRIPT), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=on_devices(1), stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_a_run_killed_twice_and_resumed_ends_like_one_never_interrupted(small, tmp_path):
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    outcome = Run(dataclasses.replace(small, out=whole)).train()
    assert outcome.learned
    for arguments, step in (options(dataclasses.replace(small, out=killed)), 18), (["--out", killed, "--resume"], 45):
        with start(*arguments) as process:
            wait_for_step(killed, step, process)
            process.kill()
            said = process.communicate()[0]
    assert re.search(r"resuming from step (7|14)\n", said)
    again = Run(saved_config(killed), resume=LAST).train()
    assert again.steps == 60
    for name in ("model.safetensors", "config.json"):
        assert (Path(whole) / name).read_bytes() == (Path(killed) / name).read_bytes()
    assert records_of(whole) == records_of(killed)
    assert sorted(os.listdir(Path(killed) / "checkpoints"))[-1] == "60"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 3), (signal.SIGHUP, 1)])
def test_signals_say_at_once_what_follows_save_the_run_and_leave_the_report_out(small, tmp_path, number, times):
    with start(*options(dataclasses.replace(small, steps=10**6, save_every=10**6, out=str(tmp_path)))) as process:
        wait_for_step(tmp_path, 20, process)
        for _ in range(times):
            process.send_signal(number)
            said = process.stderr.readline()
            assert "stops after this step and saves the run in" in said
        assert times == 1 or "still" in said
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert stderr == ""
    steps, command = re.search(r"stopped after (\d+) steps, as requested: (.+) continues\n$", stdout).groups()
    assert int(steps) >= 20
    assert "sample" not in stdout
    assert "held-out loss after" not in stdout
    assert os.listdir(tmp_path / "checkpoints") == [steps]
    assert (tmp_path / "model.safetensors").exists()
    again = subprocess.run(
        f"{command} --steps {steps}", shell=True, capture_output=True, text=True, timeout=60, check=False
    )
    assert again.stdout.startswith(f"{tmp_path} is complete, all {steps} steps are done: "), again.stderr


@pytest.mark.slow
def test_without_a_directory_a_second_signal_ends_the_run_at_once(small):
    """The first one says so."""
    with start(*options(dataclasses.replace(small, steps=10**6, save_every=50))) as process:
        for line in process.stdout:
            if line.startswith("step 50:"):
                break
        process.send_signal(signal.SIGINT)
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=60)[1]
    assert "saves nothing, as there is no --out; a second Ctrl-C ends it at once" in first
    assert process.returncode == 128 + signal.SIGINT
    assert stderr in ("", "jaxattn train: interrupted; what was saved before is intact\n")


@pytest.mark.slow
def test_a_run_of_version_0_1_0_resumes(tmp_path, monkeypatch):
    """Its checkpoint is that of step 2; its log holds the losses up to step 6."""
    with zipfile.ZipFile(Path(__file__).parent / "run_of_version_0_1_0.zip") as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    old = records_of("run")
    assert Run(saved_config("run"), resume=LAST).train().steps == 6
    new = records_of("run")
    assert {key for key in new if key[1] != "sample"} == {key for key in old if key[1] != "sample"}
    for name in ("loss", "gradient_norm"):  # of step 3, before its update
        assert new[3, name] == pytest.approx(old[3, name], rel=1e-5)
    # Since then, the learning rate of a step is that of the step after it in version 0.1.0, whose first one was 0.
    for step in (3, 4, 5):
        assert new[step, "learning_rate"] == pytest.approx(old[step + 1, "learning_rate"], rel=1e-5)
    assert new[6, "held_out_loss"] == pytest.approx(old[6, "held_out_loss"], rel=0.05)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(small):
    first, again, other = (Run(dataclasses.replace(small, steps=3, seed=seed)).train() for seed in (7, 7, 2**32 - 1))
    assert first.after == again.after != other.after


@pytest.mark.slow
def test_resuming_a_finished_run_repeats_its_report(small, tmp_path):
    config = dataclasses.replace(small, steps=5, out=str(tmp_path))
    first, again = Run(config).train(), Run(saved_config(config.out), resume=LAST).train()
    assert (first.before, first.after, first.bigram) == (again.before, again.after, again.bigram)
    assert again.tokens_per_second is None


@pytest.mark.slow
def test_a_finished_run_is_resumed_to_more_steps_and_says_how_the_learning_rate_continues(small, tmp_path, capsys):
    config = dataclasses.replace(small, steps=5, save_every=5, out=str(tmp_path))
    Run(config).train()
    capsys.readouterr()
    with pytest.raises(ValueError, match=r"--steps is 4, but the run in \S+ has done 5 already"):
        Run(dataclasses.replace(config, steps=4), LAST)
    assert saved_config(config.out) == config
    outcome = Run(dataclasses.replace(config, steps=9), LAST).train()
    rates = [float(linear_schedule(9, config.learning_rate)(step)) for step in range(9)]
    assert outcome.steps == saved_config(config.out).steps == 9
    found = records_of(tmp_path)
    assert found[0, "held_out_loss"] == outcome.before.held_out
    samples = re.findall("<h2>step ([0-9]+)</h2>", (tmp_path / "samples.html").read_text())
    assert samples == ["0", "5", "9"]
    assert [found[step, "learning_rate"] for step in (6, 7, 8, 9)] == pytest.approx(rates[5:])
    after = f"like choosing among [0-9.]+ bytes equally likely at the start, among {choices(outcome.after.held_out)} at"
    printed = capsys.readouterr().out
    assert re.search(after, printed)
    said = "resuming from step 5, to 9 steps instead of 5: from here on the learning rate is that of a run of 9 steps"
    assert f"{said}, {rates[5]:.2g} at step 6 and {rates[8]:.2g} at step 9\n" in printed
    assert train(["--out", config.out, "--resume"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path} is complete, all 9 steps are done: ")
    assert f"train --out {tmp_path} --resume --steps 18 trains on" in said


@pytest.mark.slow
def test_with_64_bits_a_run_saves_its_checkpoints_and_resumes(small, tmp_path):
    jax.config.update("jax_enable_x64", True)
    try:
        config = dataclasses.replace(small, steps=2, save_every=1, out=str(tmp_path))
        run = Run(config)  # its first checkpoint comes with a sample
        run.train()
        again = Run(dataclasses.replace(config, steps=3, save_every=3), LAST)
        assert again.train().steps == 3
        for state in (run.state, again.state):
            assert {str(leaf.dtype) for leaf in jax.tree.leaves(state)} == {"float32", "int32"}
    finally:
        jax.config.update("jax_enable_x64", False)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_last_intact_one_is_offered_and_works(small, tmp_path):
    config = dataclasses.replace(small, steps=14, out=str(tmp_path))
    Run(config).train()
    expected = (tmp_path / "model.safetensors").read_bytes()
    files = [file for file in (tmp_path / "checkpoints" / "14").rglob("*") if file.is_file()]
    max(files, key=lambda file: file.stat().st_size).write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoints/14 is damaged.*step 7 is intact.*--resume 7 resumes"):
        Run(config, resume=LAST).train()
    with pytest.raises(ValueError, match=r"--resume 8: there is no complete checkpoint of that step, only 7, 14"):
        Run(config, resume=8).train()
    (tmp_path / "model.safetensors").unlink()
    Run(config, resume=7).train()
    assert (tmp_path / "model.safetensors").read_bytes() == expected


def test_a_nan_loss_stops_the_run_and_says_where(small, tmp_path):
    config = dataclasses.replace(small, steps=10**5, learning_rate=1e9, save_every=1, out=str(tmp_path))
    with pytest.raises(
        DivergedError,
        match=r"at step \d+ .* at byte \d+, \d+, \d+, \d+ of.* --resume \d+ resumes from the last good checkpoint",
    ):
        Run(config).train()
    assert not (tmp_path / "model.safetensors").exists()
    losses = [value for (_, name), value in records_of(tmp_path).items() if name == "loss"]
    assert losses
    assert all(map(math.isfinite, losses))


def test_a_nan_held_out_loss_stops_the_run_before_it_is_saved(small, tmp_path, monkeypatch):
    run = Run(dataclasses.replace(small, steps=14, out=str(tmp_path)))
    monkeypatch.setattr(run.evaluate, "held_out", lambda params: math.nan if int(run.state.step) == 14 else 1.0)
    with pytest.raises(
        DivergedError, match=r"at step 14 the held-out loss is nan.* --resume 7 resumes from the last good checkpoint"
    ):
        run.train()
    assert os.listdir(tmp_path / "checkpoints") == ["7"]
    assert not (tmp_path / "model.safetensors").exists()


def test_an_impossible_configuration_is_refused_before_anything_is_written(small, tmp_path):
    config = dataclasses.replace(small, steps=14, out=str(tmp_path))
    Run(config).train()
    with pytest.raises(ValueError, match="--accumulate 3 does not divide the 4 sequences"):
        Run(dataclasses.replace(config, accumulate=3), resume=7)
    assert saved_config(config.out) == config
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["14", "7"]


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_sentence_and_it_resumes_once_there_is_room(small, tmp_path):
    """The shell limits the size of files; the log reaches the limit first."""
    config = dataclasses.replace(small, steps=10**6, save_every=50, out=str(tmp_path))
    limit = f"ulimit -f 100 && exec {shlex.join([sys.executable, '-u', str(SCRIPT), *map(str, options(config))])}"
    finished = subprocess.run(
        ["bash", "-c", limit], env=on_devices(1), capture_output=True, text=True, timeout=200, check=False
    )
    assert finished.returncode == 2, finished.stdout[-2000:]
    (line,) = finished.stderr.strip().splitlines()
    step = int(re.search(r"File too large.*the checkpoint of step (\d+) is intact: .* --resume resumes", line)[1])
    assert step >= 50
    run = Run(saved_config(config.out), resume=LAST)
    run.config = dataclasses.replace(run.config, steps=step + 3)
    assert run.train().steps == step + 3


@pytest.mark.slow
def test_a_run_trains_on_tokens_of_a_learned_or_given_tokenizer(small, tmp_path):
    outcome = Run(
        dataclasses.replace(small, tokenizer="bpe", vocab_size=300, steps=20, out=str(tmp_path / "a"))
    ).train()
    assert outcome.learned
    assert outcome.before.held_out == pytest.approx(math.log(300), rel=0.05)
    own = dataclasses.replace(
        small, tokenizer=str(tmp_path / "a" / "tokenizer.json"), steps=20, out=str(tmp_path / "b")
    )
    assert Run(own).train().after == outcome.after
    Path(own.tokenizer).unlink()  # the run has its own copy
    assert Run(saved_config(own.out), resume=LAST).train().after == outcome.after


@pytest.mark.slow
def test_eight_devices_give_the_losses_of_one(text):
    program = f"""
        import json
        from jaxattn.training.config import TrainConfig
        from jaxattn.training.run import Run
        sizes = dict(text=({text!r},), layers=1, heads=2, width=8, context_length=8, batch_size=8, steps=5)
        runs = [("data=1", 0.0), ("data=2,model=2,seq=2", 0.0), ("data=4,model=2", 0.0)]
        runs += [("data=1", 0.2), ("", 0.2), ("data=2,seq=4", 0.2)]
        for mesh, dropout in runs:
            run = Run(TrainConfig(**sizes, mesh=mesh, dropout=dropout))
            outcome = run.train()
            print("OUT", json.dumps([*outcome.before, *outcome.after]))
    """
    command, environment = [sys.executable, "-c", textwrap.dedent(program)], on_devices(8)
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "devices    data 8," in finished.stdout
    one, three_axes, two_axes, dropout, dropout_on_all, dropout_in_ring = (
        json.loads(line[4:]) for line in finished.stdout.splitlines() if line.startswith("OUT")
    )
    np.testing.assert_allclose([three_axes, two_axes], [one, one], rtol=1e-5)
    np.testing.assert_allclose([dropout_on_all, dropout_in_ring], [dropout, dropout], rtol=1e-5)


@pytest.mark.slow
def test_two_processes_train_together_and_one_resumes(small, tmp_path):
    config = dataclasses.replace(small, mesh="", dropout=0.0, steps=10**6, out=str(tmp_path / "two"))
    together = ["--coordinator", free_place(), "--processes", 2, "--process"]
    with start(*options(config), *together, 0) as first, start(*options(config), *together, 1) as second:
        wait_for_step(config.out, 8, first)
        second.send_signal(signal.SIGTERM)  # one receives it, both stop
        for process in (first, second):
            stdout, stderr = process.communicate(timeout=200)
            assert process.returncode == 128 + signal.SIGTERM, stderr[-2000:]
            assert ("devices    data 2," in stdout) == (process is first)
    step = max(map(int, os.listdir(tmp_path / "two" / "checkpoints")))
    resumed = dataclasses.replace(saved_config(config.out), mesh="data=1")
    losses = {}
    for run in (Run(resumed, resume=LAST), Run(dataclasses.replace(resumed, out=None))):
        run.config = dataclasses.replace(run.config, steps=step + 3)
        losses[run.resume] = run.train().after
    assert losses[LAST].held_out == pytest.approx(losses[None].held_out, rel=1e-4)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path):
    """With a sparse file of two gigabytes."""
    program = """
        import resource, sys
        from pathlib import Path
        from jaxattn.training.fingerprints import fingerprints
        from jaxattn.training.batches import make_batch
        from jaxattn.training.bigram import bigram_loss
        from jaxattn.training.text import make_corpus
        path = Path(sys.argv[1])
        fingerprints([path])
        corpus = make_corpus([path], 128)
        for number in range(200):
            batch = make_batch(corpus.train, 16, 129, (0, number))
        print(bigram_loss(corpus.train, batch, 256), len(corpus.train))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    peaks = []
    for size in (2**24, 2**31):
        with open(tmp_path / "text", "wb") as file:
            file.truncate(size)
        command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "text")]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert finished.returncode == 0, finished.stderr
        peaks.append(int(finished.stdout.split()[-1]) / 1024)
    assert peaks[1] < peaks[0] + 64


@pytest.mark.parametrize("delay", [0.3, 1.5, *and_slowly(2.5)])
def test_a_signal_before_training_starts_ends_it_in_one_sentence(small, delay):
    with start(*options(dataclasses.replace(small, steps=10**6))) as process:
        time.sleep(delay)
        process.terminate()
        _, stderr = process.communicate(timeout=60)
    # At first, Python has not reached the script yet; later, training may have started.
    assert process.returncode in ((143, -signal.SIGTERM) if delay < 1 else (143,))
    assert re.fullmatch(
        r"(jaxattn train: (interrupted; what was saved before is intact|stops after this step.*)\n)?", stderr
    )
