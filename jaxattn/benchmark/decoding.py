"""Greedy decoding, token by token, beside transformers with the same random weights: GPT-2 small, and a small Llama."""

import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.benchmark.machine import count_cores
from jaxattn.benchmark.measure import Candidate, Comparison
from jaxattn.extras import require
from jaxattn.models.generation import generate
from jaxattn.models.gpt2 import load_gpt2
from jaxattn.models.llama_files import load_llama


class Setting(NamedTuple):
    """What is decoded: fields of a transformers configuration, and how many tokens."""

    fields: dict[str, Any]
    prompt_tokens: int
    new_tokens: int


SETTINGS = {
    "GPT-2 small": Setting({"model_type": "gpt2"}, prompt_tokens=16, new_tokens=50),
    "Llama, 4 × 512": Setting(
        {
            "model_type": "llama",
            "hidden_size": 512,
            "intermediate_size": 1408,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
        },
        prompt_tokens=64,
        new_tokens=128,
    ),
}


def compare_decoding(batch_size: int) -> Iterator[Comparison]:
    """Compare the continuations of random prompts by each model."""
    for name, setting in SETTINGS.items():
        sizes = {"B": batch_size, "T": setting.prompt_tokens + setting.new_tokens}
        candidates = decoding_candidates(setting, batch_size)
        yield Comparison(f"decoding, {name}", sizes, candidates, tokens=batch_size * setting.new_tokens)


def decoding_candidates(setting: Setting, batch_size: int) -> list[Candidate]:
    """Make both candidates: greedy continuations of random prompts.

    Raises:
        ImportError: transformers or torch is missing.
    """
    torch, transformers = require("torch", extra="peers"), require("transformers", extra="peers")
    torch.set_num_threads(count_cores())
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    peer = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**setting.fields)).eval()
    load = load_gpt2 if setting.fields["model_type"] == "gpt2" else load_llama
    with tempfile.TemporaryDirectory() as directory:
        peer.save_pretrained(directory)
        model, params = load(directory)
    P, new_tokens = setting.prompt_tokens, setting.new_tokens
    prompts = np.random.default_rng(0).integers(0, peer.config.vocab_size, (batch_size, P))
    options = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def run_peer() -> Any:
        ids = torch.from_numpy(prompts)
        return peer.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, P:].numpy()

    def run_ours() -> Any:
        return jax.block_until_ready(generate(model, params, jnp.asarray(prompts), new_tokens, temperature=0))

    return [Candidate("jaxattn", run_ours), Candidate("transformers", run_peer)]
