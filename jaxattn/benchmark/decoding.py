"""Greedy decoding with GPT-2 small, token by token, beside transformers with the same random weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.benchmark.machine import count_cores
from jaxattn.benchmark.measure import Candidate, Comparison
from jaxattn.extras import require
from jaxattn.models.generation import generate
from jaxattn.models.gpt import GPT, GPTConfig
from jaxattn.models.gpt2 import params_from_gpt2

SMALL = GPTConfig(vocab_size=50257, context_length=1024, num_layers=12, num_heads=12, features=768)
PROMPT_TOKENS, NEW_TOKENS = 16, 50


def compare_decoding(batch_size: int) -> Comparison:
    """Compare the continuations of random prompts."""
    setting = {"B": batch_size, "T": PROMPT_TOKENS + NEW_TOKENS}
    candidates = decoding_candidates(SMALL, batch_size, PROMPT_TOKENS, NEW_TOKENS)
    return Comparison("decoding", setting, candidates, tokens=batch_size * NEW_TOKENS)


def decoding_candidates(config: GPTConfig, batch_size: int, prompt_tokens: int, new_tokens: int) -> list[Candidate]:
    """Make both candidates: greedy continuations of random prompts `(batch_size, prompt_tokens)`.

    Raises:
        ImportError: transformers or torch is missing.
    """
    torch, transformers = require("torch", extra="peers"), require("transformers", extra="peers")
    torch.set_num_threads(count_cores())
    torch.manual_seed(0)
    sizes = {
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_embd": config.features,
    }
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    params = params_from_gpt2({name: tensor.numpy() for name, tensor in peer.state_dict().items()}, config)
    prompts = np.random.default_rng(0).integers(0, config.vocab_size, (batch_size, prompt_tokens))
    options = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def run_peer() -> Any:
        ids = torch.from_numpy(prompts)
        return peer.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, prompt_tokens:].numpy()

    def run_ours() -> Any:
        return jax.block_until_ready(generate(GPT(config), params, jnp.asarray(prompts), new_tokens, temperature=0))

    return [Candidate("jaxattn", run_ours), Candidate("transformers", run_peer)]
