import pytest

from jaxattn import GPTConfig
from jaxattn.benchmark.measure import check_agreement
from jaxattn.benchmark.training import training_candidates


def test_both_candidates_take_the_same_steps():
    pytest.importorskip("torch", reason="nanoGPT is written in PyTorch: install the extra torch")
    small = GPTConfig(vocab_size=32, context_length=8, num_layers=2, num_heads=2, features=16)
    differences = check_agreement(training_candidates(small, batch_size=4), 1e-3)
    assert differences["nanoGPT"] > 0
