import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import GPTConfig
from jaxattn.benchmark import peers
from jaxattn.benchmark.decoding import decoding_candidates
from jaxattn.benchmark.measure import check_agreement
from jaxattn.benchmark.memory import STATUS, extra_memory
from jaxattn.benchmark.report import markdown, plot


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", peers.MASKS)
def test_whoever_is_installed_computes_the_same_under_every_mask(kind, backward, monkeypatch):
    monkeypatch.setattr(peers, "WINDOW", 5)
    candidates = list(peers.candidates(kind, (2, 24, 2, 8), backward, memory=1e9))
    assert {"jaxattn", *peers.DENSE[:4]} <= {candidate.name for candidate in candidates}
    check_agreement(candidates, 1e-4)


@pytest.mark.parametrize("kind", peers.MASKS)
@pytest.mark.parametrize("length", [7, 24, 300])
def test_the_work_is_what_the_mask_shows(kind, length):
    mask = peers.make_mask(kind, length)
    shown = np.ones((length, length)) if mask is None else mask.array(length, length)
    assert peers.visible_cells(kind, length) == np.asarray(shown).sum()
    assert peers.operations(kind, (2, length, 3, 4), True) == 3.5 * 2 * 3 * np.asarray(shown).sum() * 4 * 4


def test_weights_that_do_not_fit_into_memory_are_not_tried():
    names = {candidate.name for candidate in peers.candidates("causal", (1, 16, 2, 8), False, memory=1)}
    assert "jaxattn" in names
    assert not names & set(peers.DENSE)


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells a process's peak memory")
def test_a_dense_peer_takes_the_memory_of_its_weights_and_ours_does_not():
    shape = (1, 1024, 4, 8)
    weights = 4 * 4 * 1024**2
    assert extra_memory("jax.nn", "causal", shape, False) > weights
    assert extra_memory("jaxattn", "causal", shape, False) < weights


ROWS = [
    {"direction": "forward", "mask": "causal", "B": 1, "T": T, "name": name, "seconds": seconds * T, "bytes": 2**20 * T}
    for T in (64, 128)
    for name, seconds in (("jaxattn", 1e-5), ("jax.nn", 3e-5))
]


def test_the_table_has_a_line_for_each_length_and_says_how_many_times_slower():
    lines = markdown(ROWS).splitlines()
    assert lines[0] == "| forward, causal | jaxattn | jax.nn |"
    assert lines[2] == "| T=64 | 0.64 ms, 64 MB | 1.92 ms (3.00 ×), 64 MB |"
    assert len([line for line in lines if line.startswith("| T=")]) == 2


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_picture_is_drawn(tmp_path, ending):
    pytest.importorskip("matplotlib", reason="pictures need the extra bench")
    file = tmp_path / f"picture.{ending}"
    plot(ROWS, str(file))
    assert file.stat().st_size > 1000
    with pytest.raises(ValueError, match="must end in a format's name"):
        plot(ROWS, str(tmp_path / "picture"))


def test_heads_are_random_and_the_same_for_all():
    first, second = (peers.candidate(name, "full", (1, 8, 2, 4), False).run() for name in ("jaxattn", "jax.nn"))
    assert jnp.abs(first).max() > 0.1
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_decoding_gives_the_tokens_of_transformers():
    pytest.importorskip("transformers", reason="decodes beside transformers: install the extra peers")
    check_agreement(decoding_candidates(GPTConfig(50, 32, 2, 2, 8), 2, 5, 20), 0.0)
