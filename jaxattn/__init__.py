"""Attention that you can read in one sitting, import the same afternoon, and never outgrow, in JAX and Flax."""

from jaxattn import masks
from jaxattn.attention import dot_product_attention, explain_implementation
from jaxattn.functional import (
    attention_scores,
    attention_weights,
    context_vectors,
    dropout,
    renormalized_weights,
)
from jaxattn.masks import assert_causal
from jaxattn.models.generation import generate
from jaxattn.models.gpt import GPT, GPTConfig
from jaxattn.stages import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention,
    SimpleSelfAttention,
    parallel_from_stacked,
)

__version__ = "0.1.0"

__all__ = [
    "GPT",
    "CausalAttention",
    "GPTConfig",
    "MultiHeadAttention",
    "MultiHeadAttentionWrapper",
    "SelfAttention",
    "SimpleSelfAttention",
    "assert_causal",
    "attention_scores",
    "attention_weights",
    "context_vectors",
    "dot_product_attention",
    "dropout",
    "explain_implementation",
    "generate",
    "masks",
    "parallel_from_stacked",
    "renormalized_weights",
]
