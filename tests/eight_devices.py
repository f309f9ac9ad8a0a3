"""Runs a program on eight virtual devices, in a process of its own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

PREAMBLE = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxattn import *
assert len(jax.devices()) == 8
rng = np.random.default_rng(0)
def draw(*shape): return jnp.asarray(rng.standard_normal(shape), jnp.float32)
def with_gradients(attend, *arrays):
    *inputs, gradient = arrays
    context, vjp = jax.vjp(attend, *inputs)
    return context, *vjp(gradient)
def check(came, expected):
    for a, b in zip(came, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=5e-6 * max(1, np.abs(b).max()))
"""


def on_eight_devices(program):
    """Run a program, which has the names of `PREAMBLE`."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    # Programs import what lies beside this file.
    paths = os.pathsep.join([str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths.rstrip(os.pathsep)}
    command = [sys.executable, "-c", PREAMBLE + textwrap.dedent(program)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
