import pytest

from jaxattn.benchmark.decoding import Setting, decoding_candidates
from jaxattn.benchmark.measure import check_agreement

GPT2 = {"model_type": "gpt2", "vocab_size": 50, "n_positions": 32, "n_layer": 2, "n_head": 2, "n_embd": 8}
LLAMA = {"model_type": "llama", "vocab_size": 50, "max_position_embeddings": 32, "num_hidden_layers": 2,
         "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip


@pytest.mark.parametrize("fields", [GPT2, LLAMA])
def test_both_candidates_choose_the_same_tokens(fields):
    pytest.importorskip("transformers", reason="decodes beside transformers: install the extra peers")
    check_agreement(decoding_candidates(Setting(fields, prompt_tokens=5, new_tokens=20), batch_size=2), 0.0)
