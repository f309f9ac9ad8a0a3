"""How the command says that a process that trains with others has ended; tests of several processes are slow."""

import os
import signal
import subprocess
import sys

import pytest

from jaxattn.training import member


def start(monkeypatch, capfd, code, directory=None):
    """Let the command watch a program in place of a member; return its exit status and what it says."""
    monkeypatch.setattr(member, "MEMBER", code)
    status = member.watch_member(["--steps", "1"], directory)
    return status, capfd.readouterr().err


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "checkpoints" / "40").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGKILL])
def test_a_process_that_cannot_speak_any_more_is_spoken_for(monkeypatch, capfd, directory, number):
    """XLA aborts when the process that coordinates is gone; the system kills for lack of memory."""
    lines = [
        "[Gloo] Rank 1",
        "E1129 21:32:36.166519   20597 coordination_service.cc:1520] Some timed out task names:",
        "2",
        "The tasks have crashed. Check the task logs for an earlier error",
        "F1125 15:38:34.705372   27410 client.h:80] Terminating process because the service detected fatal errors",
        "Additional GRPC error information from remote target",
        ":UNKNOWN:Error received from peer",
        "*** Check failure stack trace: ***",
        "    @     0x7fc985440634  absl::lts",
    ]
    code = f"import os, sys; sys.stderr.write({chr(10).join(lines) + chr(10)!r}); sys.stderr.flush(); "
    status, said = start(monkeypatch, capfd, code + f"os.kill(os.getpid(), {int(number)})", directory)
    (line,) = said.splitlines()
    assert line.startswith("jaxattn train: ")
    assert "the checkpoint of step 40 is intact" in line
    assert f"--out {directory} --resume, in every process" in line
    if number == signal.SIGABRT:
        assert (status, "another training process has ended or cannot be reached" in line) == (member.LOST, True)
    else:
        assert (status, "the system ended this process (SIGKILL)" in line) == (137, True)


def test_what_a_member_says_itself_is_passed_on_alone(monkeypatch, capfd):
    code = "import sys; print('jaxattn train: --steps is 0', file=sys.stderr); sys.exit(2)"
    assert start(monkeypatch, capfd, code) == (2, "jaxattn train: --steps is 0\n")


def test_a_lost_member_without_a_checkpoint_says_so(monkeypatch, capfd):
    status, said = start(monkeypatch, capfd, f"import os; os._exit({member.LOST})")
    assert status == member.LOST
    assert said.endswith("and this one ends too; no checkpoint was saved\n")


@pytest.mark.slow
def test_a_member_ends_with_the_command_that_watches_it(tmp_path):
    code = "from jaxattn.training.member import become_member; import time; become_member(); print(1); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ
    ) as process:
        process.stdout.readline()
        process.stdin.close()
        assert process.wait(20) == member.LOST


@pytest.mark.parametrize(
    ("message", "is_lost"),
    [
        ("UNKNOWN: Gloo AllGather failed: Connection closed by peer", True),
        ("DEADLINE_EXCEEDED: Barrier timed out", True),
        ("RESOURCE_EXHAUSTED: Gloo: out of memory", False),
        ("No space left on device", False),
    ],
)
def test_a_lost_connection_is_told_from_an_error_of_this_process(message, is_lost):
    error = OSError("the run could not be saved")
    error.__cause__ = RuntimeError(message)
    assert member.has_lost_others(error) == is_lost
