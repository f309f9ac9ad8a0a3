import gc
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.training.checkpoints import Checkpoints


def state(seed, width=300):
    return {"params": jax.random.normal(jax.random.key(seed), (width, 7)), "step": jnp.int32(seed)}


@pytest.fixture
def full(tmp_path):
    """Checkpoints of six steps; the second one had the lowest held-out loss."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step, loss in zip((10, 20, 25, 30, 40, 50), (5.0, 1.0, 6.0, 4.0, 3.0, 2.0), strict=True):
        checkpoints.save(step, state(step), loss)
    checkpoints.wait()
    checkpoints.close()
    return tmp_path / "checkpoints"


def test_the_last_few_and_the_best_are_kept(full):
    checkpoints = Checkpoints(full)
    assert checkpoints.steps() == [20, 30, 40, 50]
    for step in (20, 30, 40, 50):
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(step, state(0)), state(step))
    checkpoints.save(60, state(60), 2.5)
    checkpoints.save(70, state(70), None)  # as when a run is stopped
    checkpoints.wait()
    assert checkpoints.steps() == [20, 50, 60, 70]


def test_a_checkpoint_is_a_copy_of_the_state(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    kept = state(1)
    checkpoints.save(1, kept, 1.0)
    jax.tree.map(lambda x: x.delete(), kept)
    checkpoints.wait()
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(1, state(0)), state(1))


def largest(place):
    return max((file for file in place.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def truncate(place):
    file = largest(place)
    file.write_bytes(file.read_bytes()[:-100])


def flip(place):
    file = largest(place)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [truncate, flip, lambda place: largest(place).unlink()], ids=["truncate", "flip", "lose"]
)
def test_a_damaged_checkpoint_is_named_and_the_last_intact_one_is_found(full, damage):
    damage(full / "50")
    checkpoints = Checkpoints(full)
    with pytest.raises(ValueError, match="50 is damaged"):
        checkpoints.restore(50, state(0))
    assert checkpoints.last_intact_before(50, state(0)) == 40
    checkpoints.delete_after(40)
    assert checkpoints.steps() == [20, 30, 40]
    assert not (full / "50").exists()


def test_foreign_directories_are_named_or_ignored(full):
    (full / "notes").mkdir()
    (full / "60").mkdir()
    checkpoints = Checkpoints(full)
    assert checkpoints.steps()[-1] == 60
    with pytest.raises(ValueError, match="60 is damaged or not a checkpoint of this run"):
        checkpoints.restore(60, state(0))
    assert checkpoints.last_intact_before(60, state(0)) == 50


def test_another_models_checkpoint_is_refused(full):
    with pytest.raises(ValueError, match="50 is damaged or not a checkpoint of this run"):
        Checkpoints(full).restore(50, state(0, width=301))
    gc.collect()  # Python would warn about the unfinished read in another test


def test_a_full_disk_leaves_the_last_checkpoint_intact(full):
    """In a process of its own, because orbax's threads print errors. No other comes to a barrier of these threads."""
    program = f"""
        import pathlib, resource, threading, time
        import jax, jax.numpy as jnp, orbax.checkpoint
        wait = lambda **_: threading.current_thread() is threading.main_thread() or time.sleep(1000)
        orbax.checkpoint.multihost.get_barrier_sync_fn = lambda: wait
        from jaxattn.training.checkpoints import Checkpoints
        checkpoints = Checkpoints(pathlib.Path({str(full)!r}))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        try:
            params = jax.random.normal(jax.random.key(0), (300, 7))
            checkpoints.save(60, {{"params": params, "step": jnp.int32(60)}}, 1.5)
            checkpoints.wait()
        except OSError as error:
            print(error, checkpoints.steps())
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert "could not be saved" in finished.stdout, finished.stderr
    assert "a file would be larger than this process may write" in finished.stdout
    assert finished.stdout.strip().endswith("40, 50]")
    checkpoints = Checkpoints(full)
    assert checkpoints.steps()[-2:] == [40, 50]
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(50, state(0)), state(50))
