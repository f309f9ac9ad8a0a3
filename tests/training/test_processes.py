"""Several processes that train together: killed, out of disk space, with other clocks, resumed on other meshes."""

import dataclasses
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from programs import SCRIPT, free_place, on_devices, options, records_of, wait_for_step

from jaxattn.training.config import TrainConfig
from jaxattn.training.directory import saved_config, saved_steps
from jaxattn.training.member import LOST
from jaxattn.training.recovery import LAST
from jaxattn.training.run import Run

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path):
    """A run whose parameters are sharded over the processes, so that each of them writes to disk."""
    text = tmp_path / "text.txt"
    text.write_text(" ".join(np.random.default_rng(0).choice(["the", "old", "dog", "chased", "him"], 3000)))
    return TrainConfig(
        text=(str(text),), layers=1, heads=2, width=16, context_length=16, batch_size=8, steps=240, save_every=40,
        recipe="gpt2", learning_rate=1e-3,
        shard_parameters=True, out=str(tmp_path / "run"),
    )  # fmt: skip


def start(number, arguments, prefix="", environment=None, more=(), special=1):
    """Start processes that train together; prefix, environment and more arguments are for one of them alone."""
    place, processes = free_place(), []
    for process in range(number):
        together = ["--coordinator", place, "--processes", number, "--process", process, *more * (process == special)]
        command = shlex.join([sys.executable, "-u", str(SCRIPT), *map(str, [*arguments, *together])])
        command = f"{prefix if process == special else ''} exec {command}"
        variables = on_devices(1) | (environment or {} if process == special else {})
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(["bash", "-c", command], env=variables, stdout=pipe, stderr=pipe, text=True))
    return processes


def ends_of(processes, timeout=120):
    """The exit status of each process, and what it wrote to standard error."""
    ends = []
    try:
        for process in processes:
            stderr = process.communicate(timeout=timeout)[1]
            ends.append((process.returncode, stderr))
    finally:
        for process in processes:
            process.kill()
    return ends


def losses(directory):
    return {key: value for key, value in records_of(directory).items() if "loss" in key[1]}


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[key] for key in expected], list(expected.values()), rtol=1e-4)


def kill(processes, victim, directory, step):
    """Kill one of the processes after a step; check that the others end in one sentence, with what is saved."""
    wait_for_step(directory, step, processes[0])
    processes[victim].kill()
    started = time.monotonic()
    for process, (status, said) in enumerate(ends_of(processes)):
        if process != victim:
            assert status == LOST, said
            (line,) = said.splitlines()
            assert "another training process has ended or cannot be reached, and this one ends too" in line
            assert re.search(r"the checkpoint of step \d+ is intact: .* --resume, in every process", line)
    assert time.monotonic() - started < 60


def test_killed_processes_lose_nothing_and_any_number_of_them_resumes(config, tmp_path):
    """Twice killed on two processes, whose clocks are a day apart, then resumed by one on one device."""
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(
        "import time\nreal, real_ns = time.time, time.time_ns\n"
        "time.time, time.time_ns = lambda: real() + 86400, lambda: real_ns() + 86400 * 10**9\n"
    )
    clock = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "clock"), os.environ.get("PYTHONPATH", "")])}
    whole = dataclasses.replace(config, mesh="data=1", out=str(tmp_path / "whole"))
    Run(whole).train()
    kill(start(2, options(config), environment=clock), 0, config.out, 60)
    assert saved_steps(Path(config.out))[-1] >= 40
    again = ["--out", config.out, "--resume"]
    kill(start(2, again, environment=clock), 1, config.out, 140)
    resumed = dataclasses.replace(saved_config(config.out), mesh="data=1", shard_parameters=False)
    assert Run(resumed, LAST).train().steps == config.steps
    assert_close(losses(config.out), losses(whole.out))


def assert_one_fails(ends, failing, reason):
    """Check that one process says what is wrong, and the others that another one has ended."""
    for process, (status, said) in enumerate(ends):
        (line,) = said.splitlines()
        assert status == (2 if process == failing else LOST), said
        assert (reason in line) == (process == failing), said
        assert ("another training process has ended" in line) == (process != failing), said


@pytest.mark.parametrize("failing", [0, 2])
def test_a_full_disk_of_one_of_four_processes_ends_all_in_one_sentence(config, failing):
    """The shell limits the size of its files: the checkpoint of its shards does not fit."""
    wide = dataclasses.replace(config, width=64, steps=10**6, save_every=10)
    processes = start(4, options(wide), prefix="ulimit -f 20;", special=failing)
    wait_for_step(config.out, 10, processes[0])
    ends = ends_of(processes)
    assert_one_fails(ends, failing, "a file would be larger than this process may write")
    assert "no checkpoint was saved" in ends[failing][1]


def test_a_disk_that_fills_up_leaves_a_checkpoint_that_fewer_processes_resume(config):
    wide = dataclasses.replace(config, width=64, steps=10**6, save_every=10)
    processes = start(2, options(wide))
    wait_for_step(config.out, 25, processes[0])  # the checkpoint of step 10 was complete before that of step 20
    (member,) = Path(f"/proc/{processes[1].pid}/task/{processes[1].pid}/children").read_text().split()
    resource.prlimit(int(member), resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    ends = ends_of(processes)
    assert_one_fails(ends, 1, "a file would be larger than this process may write")
    last = saved_steps(Path(config.out))[-1]
    assert last >= 10
    assert all(f"the checkpoint of step {last} is intact" in said for _, said in ends)
    resumed = dataclasses.replace(saved_config(config.out), mesh="data=1", shard_parameters=False, steps=last + 5)
    assert Run(resumed, LAST).train().steps == last + 5


def test_a_process_that_leaves_ends_those_that_notice_no_broken_connection():
    """Within seconds, although it counts as silent only after a minute."""
    program = (
        "import sys, time, jax; from jaxattn.training import devices, member; process = int(sys.argv[1]); "
        f"devices.join_processes({free_place()!r}, 2, process); jax.devices(); "
        "member.leave(2) if process else time.sleep(300)"
    )
    command, pipe = [sys.executable, "-c", program], subprocess.PIPE
    processes = [subprocess.Popen([*command, str(i)], stdout=pipe, stderr=pipe, text=True) for i in range(2)]
    assert processes[1].wait(120) == 2
    assert ends_of(processes, timeout=40)[0][0] == -signal.SIGABRT


def test_a_text_that_one_process_cannot_read_ends_all_in_one_sentence(config):
    """Before anything but the coordinator connects them."""
    processes = start(3, options(config), more=["--text", "missing.txt"], special=2)
    processes[2].wait(120)
    assert_one_fails(ends_of(processes, timeout=40), 2, "missing.txt does not exist")


def test_processes_that_finish_leave_together(config):
    """The main process writes the model and the report while the other one waits."""
    ends = ends_of(start(2, options(dataclasses.replace(config, steps=20, learning_rate=3e-2))))
    assert ends == [(0, ""), (0, "")]
