"""Programs that tests start."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "train.py"


def on_devices(number):
    """The environment of a process; it does not cache compiled programs, as it may die while writing them."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={number}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "0"}


def measured(program, devices=8):
    """The JSON that a program prints; it runs in a process with several devices."""
    command, environment = [sys.executable, "-c", textwrap.dedent(program)], on_devices(devices)
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])


def free_place():
    """A HOST:PORT at which processes can meet."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def options(config):
    """The options of the command line that give a configuration."""
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return [
        part
        for name, value in given.items()
        if value not in ("", None, False)
        for part in ("--" + name.replace("_", "-"), *(value if isinstance(value, tuple) else [value]))
        if part is not True
    ]


def wait_for_step(directory, step, process):
    log = Path(directory) / "log.jsonl"
    while process.poll() is None and not (log.exists() and f'"step": {step},' in log.read_text()):
        time.sleep(0.005)


def records_of(directory):
    """What a run recorded for every step, except its speed."""
    records = [json.loads(line) for line in (Path(directory) / "log.jsonl").read_text().splitlines()]
    return {(r["step"], name): value for r in records for name, value in r.items() if name != "tokens_per_second"}
