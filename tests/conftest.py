"""Strictness for every test: no type is widened and no axis is added unless the code says so."""

import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path

import jax
import pytest
from hypothesis import Phase, settings

# Most of the time goes into compiling; read when the first array is made.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

# The same small programs are compiled again and again, in this process and in those that it starts.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache = tempfile.mkdtemp(prefix="jaxattn-tests-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"

# Every new shape compiles anew, so an example can take a second, and looking for a smaller one minutes.
phases = (Phase.explicit, Phase.generate)
settings.register_profile("jax", deadline=None, max_examples=12, derandomize=True, phases=phases)
settings.load_profile("jax")


@pytest.fixture(scope="session")
def book():
    """The numbers that chapter 3 of the book prints, to seven digits."""
    return json.loads((Path(__file__).parent / "book_ch03.json").read_text())


@pytest.fixture(autouse=True)
def strictness(request):
    """Refuse implicit promotion everywhere but where optax and other people's layers rely on it."""
    if {request.path.parent.name, request.path.stem} & {
        "training",
        "benchmark",
        "test_adapters",
        "test_convert",
        "test_nnx",
    }:
        yield
    else:
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            yield
