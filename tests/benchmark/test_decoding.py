import pytest

from jaxattn import GPTConfig
from jaxattn.benchmark.decoding import decoding_candidates
from jaxattn.benchmark.measure import check_agreement


def test_both_candidates_choose_the_same_tokens():
    pytest.importorskip("transformers", reason="decodes beside transformers: install the extra peers")
    check_agreement(decoding_candidates(GPTConfig(50, 32, 2, 2, 8), batch_size=2, prompt_tokens=5, new_tokens=20), 0.0)
