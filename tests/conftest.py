"""Settings for all tests: compile quickly, share compiled programs, refuse implicit type and rank promotion."""

import atexit
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import jax
import pytest
from hypothesis import Phase, settings

# Compiling takes most of the time, so tests compile without optimizations. To test what users run, set
# XLA_FLAGS=--xla_backend_optimization_level=3. XLA reads the flags when the first array is made.
flags = os.environ.get("XLA_FLAGS", "")
if "xla_backend_optimization_level" not in flags:
    flags += " --xla_backend_optimization_level=0"
    if jax.__version_info__ < (0, 11):  # gone since; saves half of the compile time of small programs
        flags += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = flags

# One cache of compiled programs for all workers and all processes that tests start. The variables are for these, the
# updates for this process, whose jax is imported already. Set JAX_COMPILATION_CACHE_DIR to keep the cache.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = directory = tempfile.mkdtemp(prefix="jaxattn-tests-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

# Tests send signals to the programs that they start. In the background, or under nohup, these would ignore them.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Every new shape is compiled, so one example can take a second, and shrinking a failing one minutes. For more examples:
# pytest -m "slow or hypothesis" --hypothesis-profile thorough
phases = (Phase.explicit, Phase.generate)
for profile, max_examples in (("fast", 3), ("thorough", 8)):
    settings.register_profile(profile, deadline=None, max_examples=max_examples, derandomize=True, phases=phases)
settings.load_profile("fast")


@pytest.fixture(scope="session")
def book():
    """The numbers that chapter 3 of the book prints, to seven digits."""
    return json.loads((Path(__file__).parent / "book_ch03.json").read_text())


@pytest.fixture(autouse=True)
def strictness(request):
    """Refuse implicit promotion, except where optax, other libraries' layers and learners rely on it."""
    if {request.path.parent.name, request.path.stem} & {
        "training",
        "benchmark",
        "exercises",
        "test_adapters",
        "test_convert",
        "test_nnx",
    }:
        yield
    else:
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            yield
