"""The GPT of `jaxattn.GPT` as an NNX module: the same sizes, parameters and numbers."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from jaxattn.cache import check_examples
from jaxattn.checks import wide_type
from jaxattn.masks import Segments
from jaxattn.models import generation
from jaxattn.models.gpt import GPTConfig, check_order, drop
from jaxattn.models.inputs import checked_tokens, document_starts, number_runs, position_vectors
from jaxattn.nnx.attention import MultiHeadAttention
from jaxattn.nnx.base import DroppingModule, Keys, nnx_storage
from jaxattn.ring import Ring


class Block(nnx.Module):
    """One block: attention, then a feed-forward layer, each on normalized input and added to the residual stream."""

    def __init__(self, config: GPTConfig, dtype: Any, ring: Ring | None, rngs: nnx.Rngs) -> None:
        width, self.rate = config.features, config.dropout_rate
        self.attention = MultiHeadAttention(
            config.num_heads,
            width,
            width,
            config.dropout_rate,
            cache_length=config.context_length,
            dtype=dtype,
            ring=ring,
            rngs=rngs,
            **config.attention,
        )
        self.attention_norm, self.feed_forward_norm = (make_norm(config, dtype, rngs) for _ in range(2))
        dense = functools.partial(nnx.Linear, use_bias=config.use_bias, dtype=dtype, rngs=rngs)
        self.expand = dense(width, 4 * width)
        self.contract = dense(4 * width, width)
        self.activate = config.activate

    def __call__(
        self, x: Array, dropout_key: Array | None, documents: Array | None, decode: bool, lengths: Array | None
    ) -> Array:
        """Apply the block; dropout is on if there is a key."""
        attention_key, *branch_keys = [None] * 3 if dropout_key is None else jax.random.split(dropout_key, 3)
        attended: Any = self.attention(
            self.attention_norm(x),
            deterministic=dropout_key is None,
            rngs=attention_key,
            mask=None if documents is None else Segments(documents),
            decode=decode,
            lengths=lengths,
        )
        x = x + drop(attended, self.rate, branch_keys[0])
        forwarded = self.contract(self.activate(self.expand(self.feed_forward_norm(x))))
        return x + drop(forwarded, self.rate, branch_keys[1])


class GPT(DroppingModule):
    """A language model: for each token, the logits of the next token; `jaxattn.GPT`, whose documentation holds, in NNX.

    Dropout is on unless `deterministic` says otherwise, as in `jaxattn.nnx.MultiHeadAttention`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn import GPTConfig
        >>> from jaxattn.nnx import GPT, generate
        >>> model = GPT(GPTConfig(256, context_length=16, num_layers=2, num_heads=2, features=8), rngs=nnx.Rngs(0))
        >>> tokens = jnp.frombuffer(b"attention", jnp.uint8)
        >>> model(tokens).shape, generate(model, tokens, 5, temperature=0).shape
        ((9, 256), (5,))
    """

    def __init__(
        self,
        config: GPTConfig,
        dtype: Any = None,
        remat: bool = False,
        ring: Ring | None = None,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        check_order(ring)
        self.config, self.dtype, self.remat = config, dtype, remat
        self.dropout_rate, self.deterministic = config.dropout_rate, False
        small = nnx.initializers.normal(0.02)
        self.embedding = nnx.Embed(config.vocab_size, config.features, dtype=dtype, embedding_init=small, rngs=rngs)
        if not config.rotary:
            self.positions = nnx.Param(small(rngs.params(), (config.context_length, config.features), jnp.float32))
        for number in range(config.num_layers):
            setattr(self, f"block_{number}", Block(config, dtype, ring, rngs))
        self.norm = make_norm(config, dtype, rngs)
        self.dropout = rngs.dropout.fork() if self.dropout_rate > 0 else None

    def __call__(
        self,
        tokens: Int[Array, "*batch T"],
        *,
        deterministic: bool | None = None,
        rngs: Keys = None,
        documents: Int[Array, "*batch T"] | None = None,
        decode: bool = False,
        lengths: Int[Array, "*batch"] | None = None,
    ) -> Float[Array, "*batch T vocab_size"]:
        """Embed tokens and positions, run the blocks, and compute logits with the same embedding."""
        config = self.config
        tokens, is_padding = checked_tokens(tokens, config, lengths, decode)
        if documents is not None and decode:
            raise ValueError("documents packs several into a sequence, but decode=True continues one: leave one out")
        documents = None if documents is None else number_runs(documents, tokens.shape)
        dropout_key = self._dropout_key(deterministic, rngs)
        keys = [None] * (config.num_layers + 1)
        if dropout_key is not None:
            keys = list(jax.random.split(dropout_key, config.num_layers + 1))
        x = self.embedding(tokens)  # (..., T, features)
        if not config.rotary:
            starts = self._count(tokens, lengths) if decode else document_starts(documents)
            x = x + position_vectors(self.positions[...], tokens, starts, is_padding).astype(x.dtype)
        x = drop(x, config.dropout_rate, keys[0])
        run: Any = nnx.remat(Block.__call__, static_argnums=(4,)) if self.remat else Block.__call__
        for number, key in enumerate(keys[1:]):
            x = run(getattr(self, f"block_{number}"), x, key, documents, decode, lengths)
        x = self.norm(x)
        table = self.embedding.embedding[...].astype(x.dtype)
        return jnp.einsum("...e,ve->...v", x, table, preferred_element_type=wide_type(x.dtype))  # (..., T, vocab_size)

    def init_cache(self, *batch: int) -> None:
        """Make empty KV caches for a batch, in place of those that there are."""
        if not self.config.rotary:
            nnx_storage(self).write(length=jnp.zeros(batch, jnp.int32))
        for number in range(self.config.num_layers):
            getattr(self, f"block_{number}").attention.init_cache(*batch)

    def _count(self, tokens: Array, lengths: Array | None) -> Array:
        """Return where the tokens begin `(..., 1)`, and add them to the count in the cache."""
        storage, (*batch, T) = nnx_storage(self), tokens.shape
        (before,) = storage.read("length") or (jnp.zeros(batch, jnp.int32),)
        check_examples("tokens", tuple(batch), before.shape)
        storage.write(length=before + (T if lengths is None else jnp.asarray(lengths, jnp.int32)))
        return before[..., None]


def make_norm(config: GPTConfig, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
    """Make the normalization of a model."""
    if config.rms_norm:
        return nnx.RMSNorm(config.features, epsilon=1e-6, dtype=dtype, use_scale=False, rngs=rngs)
    return nnx.LayerNorm(config.features, epsilon=1e-5, dtype=dtype, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class _Functional:
    """A model as `jaxattn.generate` calls it: the structure here, all arrays in `variables`."""

    graph: nnx.GraphDef[Any]
    config: GPTConfig

    def apply(self, variables: Any, tokens: Array, *, mutable: Any = None, **options: Any) -> Array | tuple[Array, Any]:
        """Call the model; with `mutable`, return its cache too."""
        model = nnx.merge(self.graph, variables["params"])
        if mutable is None:
            return model(tokens, deterministic=True, **options)
        model.init_cache(*tokens.shape[:-1])
        if "cache" in variables:
            nnx.update(model, variables["cache"])
        logits = model(tokens, deterministic=True, **options)
        return logits, {"cache": nnx.state(model, nnx.Cache)}


def _functional(model: GPT) -> tuple[Any, Any]:
    """Return a model without its cache, and its arrays."""
    model = nnx.clone(model)
    for _, module in nnx.iter_modules(model):
        if hasattr(module, "cache"):
            del module.cache
    graph, state = nnx.split(model)
    return _Functional(graph, model.config), state


def generate(model: GPT, prompt: Int[Array, "*batch P"], num_tokens: int, **options: Any) -> Array:
    """Continue prompts by `num_tokens` tokens, as `jaxattn.generate`, whose other arguments are `options`."""
    functional, state = _functional(model)
    return generation.generate(functional, state, prompt, num_tokens, **options)


def stream(model: GPT, prompt: Int[Array, "*batch P"], num_tokens: int, **options: Any) -> Iterator[Array]:
    """Yield the tokens of `generate` one by one as they are drawn, until all prompts have stopped."""
    functional, state = _functional(model)
    return generation.stream(functional, state, prompt, num_tokens, **options)
