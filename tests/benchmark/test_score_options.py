import numpy as np
import pytest

from jaxattn.benchmark.cases import Case
from jaxattn.benchmark.machine import is_installed
from jaxattn.benchmark.measure import check_agreement
from jaxattn.benchmark.score_options import OPTIONS, compare_option

SMALL = Case("causal", B=1, T=9, H=2, D=4, backward=True)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "alibi")) for name in OPTIONS])
def test_an_option_gives_the_numbers_of_pytorch_and_not_those_of_a_plain_call(name):
    comparison = compare_option(name, SMALL)
    ours, plain, *peers = comparison.candidates
    check_agreement([ours, *peers], 1e-5)
    expected = ["jax.nn", "torch"] if name in ("alibi", "relative") else ["torch, written out"]
    assert [peer.name for peer in peers] == [peer for peer in expected if peer == "jax.nn" or is_installed("torch")]
    assert not plain.deterministic
    assert np.abs(plain.run()[0] - ours.run()[0]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["soft cap", "alibi", "relative"])
def test_flex_attention_computes_the_same(name):
    pytest.importorskip("torch", reason="install the extra torch")
    comparison = compare_option(name, SMALL._replace(T=64, backward=False))
    assert comparison.candidates[-1].name == "torch flex"
    check_agreement([c for c in comparison.candidates if c.deterministic], 1e-5)
