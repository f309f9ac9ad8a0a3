"""GPT: blocks of attention and a feed-forward layer, on a residual stream of vectors; GPT-2's, or with later changes.

References:
    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2), section 2.3; Build a Large
    Language Model (From Scratch), chapter 4. The changes: Su et al. 2021, "RoFormer" (rotary positions); Henry et al.
    2020, "Query-Key Normalization for Transformers"; Zhang and Sennrich 2019, "Root Mean Square Layer Normalization";
    So et al. 2021, "Primer" (squared ReLU).
"""

import dataclasses
import functools
import operator
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxattn.cache import check_examples
from jaxattn.checks import check_kv_heads, check_rate, wide_type
from jaxattn.functional import dropout
from jaxattn.layer import AttentionLayer
from jaxattn.masks import Segments
from jaxattn.models.inputs import checked_tokens, document_starts, number_runs, position_vectors
from jaxattn.ring import Ring
from jaxattn.stages import choose_dropout_key

Part = Literal["causal", "scale", "positions"]

# The base of rotary positions: RoFormer's.
ROTARY_BASE = 10_000.0
# The options of the attention layers without a part of the model.
WITHOUT: dict[str, dict[str, Any]] = {
    "causal": {"mask": None},
    "scale": {"scale": 1.0},
    "positions": {"rotary_base": None},
}


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT, and where it differs from GPT-2.

    Args:
        vocab_size: number of different tokens.
        context_length: the longest sequence.
        num_layers: number of blocks.
        num_heads: attention heads in each block; must divide `features`.
        features: width of the token vectors.
        dropout_rate: probability of dropping, in training, an element of the embeddings, the attention weights, or the
            output of a block's branch.
        rotary: whether queries and keys are rotated by their positions; GPT-2 adds a learned vector to each position.
        normalize_heads: whether each query and key head is divided by its root mean square, with a learned scale.
        rms_norm: whether branches and logits normalize by the root mean square alone, without learned parameters, in
            place of layer normalization.
        squared_relu: whether the activation is max(0, x)² in place of GELU.
        use_bias: whether projections add a bias.
        num_kv_heads: number of KV heads, a divisor of `num_heads`; None is as many (grouped-query attention).

    Raises:
        ValueError: a size is below 1, the heads do not divide the features, their width is odd with `rotary`, or the
            rate is outside [0, 1).

    Example:
        >>> from jaxattn import GPTConfig
        >>> GPTConfig(vocab_size=256, context_length=128, num_layers=4, num_heads=4, features=128).dropout_rate
        0.0
    """

    vocab_size: int
    context_length: int
    num_layers: int
    num_heads: int
    features: int
    dropout_rate: float = 0.0
    rotary: bool = False
    normalize_heads: bool = False
    rms_norm: bool = False
    squared_relu: bool = False
    use_bias: bool = True
    num_kv_heads: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            size = getattr(self, field.name)
            if field.default is dataclasses.MISSING:
                self._check_size(field.name, size)
            elif isinstance(field.default, bool) and not isinstance(size, bool):
                raise ValueError(f"{field.name}={size!r} must be True or False: write {field.name}={bool(size)}")
        if self.num_kv_heads is not None:
            self._check_size("num_kv_heads", self.num_kv_heads)
        check_kv_heads(self.num_heads, self.num_kv_heads)
        if self.features % self.num_heads:
            raise ValueError(
                f"features={self.features} is the total width of {self.num_heads} heads, and {self.num_heads} does not "
                f"divide it: write features={-(-self.features // self.num_heads) * self.num_heads}"
            )
        if self.rotary and self.features // self.num_heads % 2:
            raise ValueError(
                f"rotary=True rotates pairs, but features={self.features} / num_heads={self.num_heads} is odd: write "
                f"features={self.features + self.num_heads}"
            )
        object.__setattr__(self, "dropout_rate", check_rate(self.dropout_rate))

    def _check_size(self, name: str, size: Any) -> None:
        index = operator.index(size) if hasattr(size, "__index__") else 0
        if index < 1:
            raise ValueError(f"{name}={size!r} must be an integer of at least 1: write {name}=4")
        object.__setattr__(self, name, index)  # NumPy's integers become Python's

    @property
    def attention(self) -> dict[str, Any]:
        """The options of each block's attention layer, besides its sizes."""
        return {
            "num_kv_heads": self.num_kv_heads,
            "use_bias": self.use_bias,
            "use_out_bias": self.use_bias,
            "rotary_base": ROTARY_BASE if self.rotary else None,
            "normalize_heads": "rms" if self.normalize_heads else False,
        }

    def activate(self, hidden: Array) -> Array:
        """Apply the activation of the feed-forward layers."""
        return jnp.square(nn.relu(hidden)) if self.squared_relu else nn.gelu(hidden)


class Block(nn.Module):
    """One block: attention, then a feed-forward layer, each on normalized input and added to the residual stream."""

    config: GPTConfig
    dtype: Any = None
    ring: Ring | None = None
    without: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch T features"],
        dropout_key: Array | None = None,
        documents: Int[Array, "*batch T"] | None = None,
        decode: bool = False,
        lengths: Int[Array, "*batch"] | None = None,
    ) -> Float[Array, "*batch T features"]:
        """Apply the block; dropout is on if there is a key."""
        config = self.config
        attention_key, *branch_keys = [None] * 3 if dropout_key is None else jax.random.split(dropout_key, 3)
        options = functools.reduce(operator.or_, (WITHOUT[part] for part in self.without), config.attention)
        attention = AttentionLayer(
            config.num_heads,
            config.features,
            config.dropout_rate,
            cache_length=config.context_length,
            dtype=self.dtype,
            ring=self.ring,
            name="attention",
            **options,
        )
        normalized = make_norm(config, self.dtype, "attention_norm")(x)
        mask = None if documents is None else Segments(documents)
        attended: Any = attention(
            normalized, dropout_key is None, attention_key, mask=mask, decode=decode, lengths=lengths
        )
        x = x + drop(attended, config.dropout_rate, branch_keys[0])
        normalized = make_norm(config, self.dtype, "feed_forward_norm")(x)
        dense = functools.partial(nn.Dense, use_bias=config.use_bias, dtype=self.dtype)
        hidden = config.activate(dense(4 * config.features, name="expand")(normalized))
        forwarded = dense(config.features, name="contract")(hidden)
        return x + drop(forwarded, config.dropout_rate, branch_keys[1])


class GPT(nn.Module):
    """A language model: for each token, the logits of the next token.

    Args:
        config: the sizes.
        dtype: the type to compute in; None is that of the parameters, float32. The logits are float32 or wider.
        remat: recompute the blocks in the backward pass, which takes time and saves memory.
        ring: shards long sequences over devices, as in `AttentionLayer`, with tokens in natural order.
        without: parts that are left out, to learn what they are for: "causal", the causal mask, so that tokens attend
            to later ones and the model cannot generate; "scale", the division of the scores by √D; "positions", the
            position vectors or the rotation. The parameters are those of the whole model.

    Args of the call:
        tokens: token ids `(..., T)`, T at most `config.context_length`. Where they are traced, an id outside the
            vocabulary gives NaN.
        deterministic: True leaves dropout off.
        dropout_key: PRNG key for dropout; None takes the module's `"dropout"` stream.
        documents: ids `(..., T)` of documents packed into a sequence: tokens attend only to their own document, and
            positions start at its first token. Neighbouring tokens of one id are one document; None is one document.
        decode: continue the tokens of earlier calls, any number at a time, with the KV cache in the collection
            `"cache"` (pass `mutable=["cache"]`). Beyond the context, the logits are NaN.
        lengths: with `decode`, the number of tokens in each example `(...)`; the rest is padding on the right, which
            may be any number and whose logits mean nothing.

    Returns:
        Logits `(..., T, vocab_size)`; row t predicts token t + 1 and depends only on tokens 0 … t.

    Raises:
        TypeError: the tokens are not integers.
        ValueError: the sequence is longer than the context, an id is outside the vocabulary, or dropout is on and has
            no key, or `decode` is on in a model without its causal mask.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import GPT, GPTConfig
        >>> model = GPT(GPTConfig(vocab_size=256, context_length=16, num_layers=2, num_heads=2, features=8))
        >>> tokens = jnp.frombuffer(b"attention", jnp.uint8)
        >>> model.init_with_output(jax.random.key(0), tokens)[0].shape
        (9, 256)
    """

    config: GPTConfig
    dtype: Any = None
    remat: bool = False
    ring: Ring | None = None
    without: tuple[Part, ...] = ()

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "*batch T"],
        deterministic: bool = True,
        dropout_key: Array | None = None,
        *,
        documents: Int[Array, "*batch T"] | None = None,
        decode: bool = False,
        lengths: Int[Array, "*batch"] | None = None,
    ) -> Float[Array, "*batch T vocab_size"]:
        """Embed tokens and positions, run the blocks, and compute logits with the same embedding."""
        config = self.config
        self._check_parts(decode)
        check_order(self.ring)
        tokens, is_padding = checked_tokens(tokens, config, lengths, decode)
        if documents is not None and decode:
            raise ValueError("documents packs several into a sequence, but decode=True continues one: leave one out")
        if documents is not None:
            documents = number_runs(documents, tokens.shape)
        dropout_key = choose_dropout_key(self, config.dropout_rate, deterministic, dropout_key)
        keys = [None] * (config.num_layers + 1)
        if dropout_key is not None:
            keys = list(jax.random.split(dropout_key, config.num_layers + 1))

        small = nn.initializers.normal(0.02)
        embedding = nn.Embed(
            config.vocab_size, config.features, dtype=self.dtype, embedding_init=small, name="embedding"
        )
        x = embedding(tokens)  # (..., T, features)
        if not config.rotary:
            positions = self.param("positions", small, (config.context_length, config.features), jnp.float32)
            starts = self._count(tokens, lengths) if decode else document_starts(documents)
            if "positions" not in self.without:
                x = x + position_vectors(positions, tokens, starts, is_padding).astype(x.dtype)
        x = drop(x, config.dropout_rate, keys[0])
        block = nn.remat(Block, static_argnums=(4,)) if self.remat else Block
        for layer, key in enumerate(keys[1:]):
            layers = block(config, self.dtype, self.ring, self.without, name=f"block_{layer}")
            x = layers(x, key, documents, decode, lengths)
        x = make_norm(config, self.dtype, "norm")(x)
        table = embedding.embedding.astype(x.dtype)
        return jnp.einsum("...e,ve->...v", x, table, preferred_element_type=wide_type(x.dtype))  # (..., T, vocab_size)

    def _check_parts(self, decode: bool) -> None:
        unknown = set(self.without) - set(WITHOUT)
        if unknown:
            raise ValueError(f"without={self.without} names {min(unknown)!r}, but the parts are {', '.join(WITHOUT)}")
        if decode and "causal" in self.without:
            raise ValueError(
                "this GPT is without its causal mask, so it cannot generate: it has learned to read each next token, "
                "not to predict it; train one with the mask, GPT(config)"
            )

    def _count(self, tokens: Array, lengths: Array | None) -> Array:
        """Return where the tokens begin `(..., 1)`, and add them to the count in the cache."""
        *batch, T = tokens.shape
        before = self.get_variable("cache", "length", jnp.zeros(batch, jnp.int32))
        check_examples("tokens", tuple(batch), before.shape)
        if not self.is_initializing() and self.is_mutable_collection("cache"):
            self.put_variable("cache", "length", before + (T if lengths is None else jnp.asarray(lengths, jnp.int32)))
        return before[..., None]


def make_norm(config: GPTConfig, dtype: Any, name: str) -> nn.Module:
    """Make the normalization of a model."""
    if config.rms_norm:
        return nn.RMSNorm(1e-6, dtype=dtype, use_scale=False, name=name)
    return nn.LayerNorm(1e-5, dtype=dtype, name=name)


def check_order(ring: Ring | None) -> None:
    """Check that tokens come in natural order: their positions and documents are found by it."""
    if ring is not None and ring.order != "natural":
        raise ValueError(
            f"ring has order={ring.order!r}, but GPT takes tokens in natural order: write Ring(mesh, axis)"
        )


def drop(x: Array, rate: float, key: Array | None) -> Array:
    """Drop entries if there is a key."""
    return x if key is None else dropout(x, rate, key)
