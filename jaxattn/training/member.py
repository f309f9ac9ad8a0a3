"""Training as one of several processes: whatever happens to the others, this one ends with one sentence.

JAX ends a process on the spot, with a stack trace, when the process that coordinates the others is gone. So the command
trains in a process of its own, a member, and watches it: it forwards stop signals, leaves out what JAX's network layers
print, and says how the member ended. A member whose command is gone ends at once.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import jax

from jaxattn.signals import STOP_SIGNALS, on_stop_signal
from jaxattn.training.checkpoints import OtherProcessError
from jaxattn.training.directory import saved_steps
from jaxattn.training.recovery import resume_command

# Set in the environment of a member. The exit status of one that has lost the others, which its command reports.
VARIABLE, LOST = "JAXATTN_MEMBER", 4
# Lines of the logs of XLA, gRPC and Gloo, and of their stack traces.
NOISE = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d|\s+@ +0x|\*\*\* |Additional GRPC|:UNKNOWN:|\[Gloo\]|Fatal Python error")
MEMBER = "import sys; sys.argv = sys.argv[1:]; from jaxattn.cli import main; sys.exit(main(['train', *sys.argv[1:]]))"
# Such an entry of a log goes on for lines that look like any other, up to what this program prints.
ENTRY, SPEECH = re.compile(r"[EF]\d{4} \d\d:\d\d:\d\d"), re.compile("jaxattn |Traceback")
# What the messages of errors have in common that come from a lost connection to the other processes.
DISCONNECTED = re.compile(r"Gloo|[Cc]oordination ?[Ss]ervice|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|[Bb]arrier|NCCL")
# A member ends so many seconds after its error: it needs some to tell the others, and those some to print their own
# before the one that coordinates them is gone.
TELLING, LAST_WORDS = 0.5, 2.0


def is_member() -> bool:
    """Return whether this process is a member."""
    return VARIABLE in os.environ


def watch_member(argv: Sequence[str], directory: Path | None) -> int:
    """Train in a member with these arguments; return its exit status, after saying how it ended."""
    command = [sys.executable, "-c", MEMBER, sys.argv[0], *argv]
    settings: dict[str, Any] = {
        "env": os.environ | {VARIABLE: "1"},
        "stdin": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        # A session of its own: the terminal's Ctrl-C reaches the member once, from here.
        "start_new_session": True,
        "text": True,
        "errors": "replace",
    }
    with subprocess.Popen(command, **settings) as member:
        undo = on_stop_signal(member.send_signal)
        try:
            _forward_errors(member.stderr)
            status = member.wait()
        finally:
            member.kill()
            undo()
    sentence = _ending(status, directory)
    if sentence is not None:
        print(f"jaxattn train: {sentence}", file=sys.stderr, flush=True)
    return LOST if status in (LOST, -signal.SIGABRT) else status if status >= 0 else 128 - status


def become_member() -> None:
    """End this process as soon as the command that watches it is gone."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(LOST)

    threading.Thread(target=wait, daemon=True).start()


def has_lost_others(error: BaseException) -> bool:
    """Return whether an error, or what it comes from, is that another process has failed or cannot be reached."""
    chain: BaseException | None = error
    while chain is not None:
        is_lost = DISCONNECTED.search(str(chain)) and "RESOURCE_EXHAUSTED" not in str(chain)
        if is_lost or isinstance(chain, OtherProcessError):
            return True
        chain = chain.__cause__
    return False


def leave(status: int) -> NoReturn:
    """End a member without waiting for the others, which an error on this side has left behind.

    Most of them notice it by a broken connection. Those that wait elsewhere are told: this one begins to shut down, and
    some seconds later, as the others have not done so too, JAX ends them.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized():
        if jax.process_index() == 0:
            time.sleep(LAST_WORDS)
        else:
            threading.Thread(target=jax.distributed.shutdown, daemon=True).start()
            time.sleep(TELLING)
    os._exit(status)


def _forward_errors(stderr: IO[str] | None) -> None:
    in_entry = False
    for line in stderr or ():
        in_entry = bool(ENTRY.match(line) or (in_entry and not SPEECH.match(line)))
        if not (in_entry or NOISE.match(line)):
            sys.stderr.write(line)
            sys.stderr.flush()


def _ending(status: int, directory: Path | None) -> str | None:
    """Say how a member ended, if it has not done so itself."""
    steps = [] if directory is None else saved_steps(directory)
    saved = "no checkpoint was saved"
    if directory is not None and steps:
        saved = (
            f"the checkpoint of step {steps[-1]} is intact: {resume_command(directory)}, in every process, resumes "
            "from it"
        )
    if status in (LOST, -signal.SIGABRT):
        return f"another training process has ended or cannot be reached, and this one ends too; {saved}"
    if status >= 0:
        return None
    name = signal.Signals(-status).name
    if name in STOP_SIGNALS:
        return "interrupted; what was saved before is intact"
    return f"the system ended this process ({name}), for lack of memory perhaps; {saved}"
