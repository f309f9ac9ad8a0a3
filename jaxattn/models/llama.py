"""Llama's architecture, which Mistral, Qwen2 and Qwen3 share: rotary positions, RMS norms, gated feed-forward layers.

References:
    Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models"; Shazeer 2020, "GLU Variants Improve
    Transformer"; Zhang and Sennrich 2019, "Root Mean Square Layer Normalization"; Jiang et al. 2023, "Mistral 7B"; Yang
    et al. 2025, "Qwen3 Technical Report".
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxattn.checks import wide_type
from jaxattn.layer import AttentionLayer
from jaxattn.masks import Causal, SlidingWindow
from jaxattn.models.inputs import checked_tokens
from jaxattn.rotary import Rotary


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The sizes and variants of a Llama.

    Args:
        vocab_size: number of different tokens.
        context_length: the longest sequence, for which the KV cache has room.
        num_layers: number of blocks.
        features: width of the token vectors.
        hidden_features: width inside the feed-forward layers.
        num_heads: query heads of each block.
        num_kv_heads: KV heads of each block, a divisor of `num_heads`.
        head_width: width of a head; None is features / num_heads.
        rotary: how queries and keys are rotated.
        windows: for each block, how many tokens it attends to, None for all; () is None for all blocks (Mistral,
            Qwen2).
        use_bias: whether queries, keys and values have a bias (Qwen2).
        use_out_bias: whether attention's output has a bias.
        use_feed_forward_bias: whether the feed-forward layers have biases.
        normalize_heads: whether query and key heads are normalized (Qwen3).
        norm_epsilon: what is added to the mean square in all norms.
        is_tied: whether the embedding is the output layer too.

    Raises:
        ValueError: there is not one window for each block.
    """

    vocab_size: int
    context_length: int
    num_layers: int
    features: int
    hidden_features: int
    num_heads: int
    num_kv_heads: int
    head_width: int | None = None
    rotary: Rotary = dataclasses.field(default_factory=Rotary)
    windows: tuple[int | None, ...] = ()
    use_bias: bool = False
    use_out_bias: bool = False
    use_feed_forward_bias: bool = False
    normalize_heads: bool = False
    norm_epsilon: float = 1e-6
    is_tied: bool = False

    def __post_init__(self) -> None:
        if self.windows and len(self.windows) != self.num_layers:
            raise ValueError(
                f"windows has {len(self.windows)} sizes for {self.num_layers} blocks: write windows=() for no windows, "
                f"or windows=(4096,) * {self.num_layers}"
            )


class LlamaBlock(nn.Module):
    """One block: attention, then a gated feed-forward layer, each on normalized input and added to the residual."""

    config: LlamaConfig
    window: int | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch T features"], decode: bool = False, lengths: Int[Array, "*batch"] | None = None
    ) -> Float[Array, "*batch T features"]:
        """Apply the block."""
        config = self.config
        attention = AttentionLayer(
            config.num_heads,
            config.features,
            num_kv_heads=config.num_kv_heads,
            head_width=config.head_width,
            use_bias=config.use_bias,
            use_out_bias=config.use_out_bias,
            mask=Causal() if self.window is None else SlidingWindow(self.window),
            rotary=config.rotary,
            normalize_heads="rms" if config.normalize_heads else False,
            norm_epsilon=config.norm_epsilon,
            cache_length=config.context_length,
            dtype=self.dtype,
            name="attention",
        )
        normalized = nn.RMSNorm(config.norm_epsilon, dtype=self.dtype, name="attention_norm")(x)
        attended: Any = attention(normalized, decode=decode, lengths=lengths)
        x = x + attended
        normalized = nn.RMSNorm(config.norm_epsilon, dtype=self.dtype, name="feed_forward_norm")(x)
        hidden = nn.silu(self._dense("gate", config.hidden_features, normalized))
        hidden = hidden * self._dense("up", config.hidden_features, normalized)
        return x + self._dense("down", config.features, hidden)

    def _dense(self, name: str, features: int, x: Array) -> Array:
        return nn.Dense(features, self.config.use_feed_forward_bias, dtype=self.dtype, name=name)(x)


class Llama(nn.Module):
    """A language model of the Llama family: for each token, the logits of the next token.

    Args:
        config: the sizes and variants.
        dtype: the type to compute in; None is that of the parameters, float32. The logits are float32 or wider.

    Args of the call:
        tokens: token ids `(..., T)`, T at most `config.context_length`. Where they are traced, an id outside the
            vocabulary gives NaN.
        decode: continue the tokens of earlier calls, any number at a time, with the KV cache in the collection
            `"cache"` (pass `mutable=["cache"]`). Beyond the context, the logits are NaN.
        lengths: with `decode`, the number of tokens in each example `(...)`; the rest is padding on the right.

    Returns:
        Logits `(..., T, vocab_size)`; row t predicts token t + 1 and depends only on tokens 0 … t.

    Raises:
        TypeError: the tokens are not integers.
        ValueError: the sequence is longer than the context, or an id is outside the vocabulary.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn.models.llama import Llama, LlamaConfig
        >>> model = Llama(LlamaConfig(256, 16, 2, features=8, hidden_features=24, num_heads=2, num_kv_heads=1))
        >>> tokens = jnp.frombuffer(b"attention", jnp.uint8)
        >>> model.init_with_output(jax.random.key(0), tokens)[0].shape
        (9, 256)
    """

    config: LlamaConfig
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "*batch T"],
        *,
        decode: bool = False,
        lengths: Int[Array, "*batch"] | None = None,
    ) -> Float[Array, "*batch T vocab_size"]:
        """Embed the tokens, run the blocks, and compute logits."""
        config = self.config
        tokens, _ = checked_tokens(tokens, config, lengths, decode)
        embedding = nn.Embed(
            config.vocab_size,
            config.features,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(0.02),
            name="embedding",
        )
        x = embedding(tokens)  # (..., T, features)
        for layer, window in enumerate(config.windows or (None,) * config.num_layers):
            x = LlamaBlock(config, window, self.dtype, name=f"block_{layer}")(x, decode, lengths)
        x = nn.RMSNorm(config.norm_epsilon, dtype=self.dtype, name="norm")(x)
        if config.is_tied:
            table = embedding.embedding
        else:
            table = self.param("output", nn.initializers.normal(0.02), (config.vocab_size, config.features))
        table = table.astype(x.dtype)
        return jnp.einsum("...e,ve->...v", x, table, preferred_element_type=wide_type(x.dtype))  # (..., T, vocab_size)
