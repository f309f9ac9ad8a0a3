"""The public names of jaxattn, which `jaxattn/__init__.py` passes on."""

from jaxattn import biases, masks
from jaxattn.adapters import equinox_attention, linen_attention_fn, nnx_attention_fn
from jaxattn.additive import additive_scores
from jaxattn.attention import dot_product_attention, explain_implementation
from jaxattn.cache import check_room, reorder_cache
from jaxattn.functional import (
    attention_scores,
    attention_weights,
    context_vectors,
    dropout,
    renormalized_weights,
)
from jaxattn.layer import AttentionLayer, LatentAttention, RelativeBias
from jaxattn.models.generation import generate, stream
from jaxattn.models.gpt import GPT, GPTConfig
from jaxattn.models.gpt2 import load_gpt2
from jaxattn.models.llama_files import load_llama
from jaxattn.ring import ring_attention
from jaxattn.rotary import Rotary
from jaxattn.stages import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention,
    SimpleSelfAttention,
    parallel_from_stacked,
)
from jaxattn.testing import assert_causal

__all__ = [
    "GPT",
    "AttentionLayer",
    "CausalAttention",
    "GPTConfig",
    "LatentAttention",
    "MultiHeadAttention",
    "MultiHeadAttentionWrapper",
    "RelativeBias",
    "Rotary",
    "SelfAttention",
    "SimpleSelfAttention",
    "additive_scores",
    "assert_causal",
    "attention_scores",
    "attention_weights",
    "biases",
    "check_room",
    "context_vectors",
    "dot_product_attention",
    "dropout",
    "equinox_attention",
    "explain_implementation",
    "generate",
    "linen_attention_fn",
    "load_gpt2",
    "load_llama",
    "masks",
    "nnx_attention_fn",
    "parallel_from_stacked",
    "renormalized_weights",
    "reorder_cache",
    "ring_attention",
    "stream",
]
