import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.benchmark.attention import make_candidate, make_candidates
from jaxattn.benchmark.cases import MASKS, Case, make_mask
from jaxattn.benchmark.measure import check_agreement
from jaxattn.benchmark.memory import STATUS, extra_memory
from jaxattn.benchmark.peers import DENSE_PEERS

SMALL = Case("causal", B=1, T=16, H=2, D=8)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_our_kernels_and_all_installed_peers_compute_the_same_under_every_mask(mask, backward):
    case = Case(mask, 2, 24, 2, 8, backward, window=5)
    candidates = list(make_candidates(case, ["dense", "blockwise"], memory_limit=1e9))
    names = {candidate.name for candidate in candidates}
    assert {"jaxattn", "jaxattn dense", "jaxattn blockwise", "jax.nn", "flax.linen", "flax.nnx"} <= names
    check_agreement(candidates, 1e-4)


@pytest.mark.parametrize("mask", MASKS)
def test_few_queries_attend_to_the_end_of_many_keys_in_all_candidates(mask):
    case = Case(mask, 2, 3, 2, 8, window=5, keys=24)
    candidates = list(make_candidates(case, ["dense", "blockwise"], memory_limit=1e9))
    assert make_mask(case) is None or make_mask(case).array(3, 24)[:, -1].tolist() == [False, False, True]
    check_agreement(candidates, 1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_all_candidates_agree_in_half_precision(dtype):
    case = Case("causal", 2, 24, 2, 8, dtype=dtype)
    check_agreement(list(make_candidates(case, ["dense", "blockwise"], memory_limit=1e9)), 0.02)


def test_heads_are_random_and_the_same_for_all_candidates():
    first, second = (make_candidate(name, SMALL._replace(mask="full")).run() for name in ("jaxattn", "jax.nn"))
    assert jnp.abs(first).max() > 0.1
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_candidates_whose_weights_do_not_fit_into_memory_are_left_out():
    names = {candidate.name for candidate in make_candidates(SMALL, ["dense", "blockwise"], memory_limit=1)}
    assert {"jaxattn", "jaxattn blockwise"} <= names
    assert not names & {"jaxattn dense", *DENSE_PEERS}


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="peak memory is known on Linux only")
def test_a_dense_peer_takes_the_memory_of_its_weights_and_ours_does_not():
    case = Case("causal", B=1, T=1024, H=4, D=8)
    weights = 4 * case.H * case.T**2
    assert extra_memory("jax.nn", case) > weights
    assert extra_memory("jaxattn", case) < weights


@pytest.mark.skipif(not STATUS.exists(), reason="peak memory is known on Linux only")
def test_a_candidate_that_fails_in_its_own_process_is_named():
    with pytest.raises(ValueError, match="the memory of nobody could not be measured: KeyError: 'nobody'"):
        extra_memory("nobody", SMALL)
