"""Stage 4 with what today's models add to it; parameters have the same names, and those of stage 4 fit."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxattn.attention import attend, attend_with_steps
from jaxattn.cache import Cache
from jaxattn.checks import as_tokens, check_kv_heads, features_per_head, known
from jaxattn.kernels.call import Implementation, checked_call
from jaxattn.masks import Causal, Lengths, Mask, Segments, SlidingWindow, combine
from jaxattn.ring import Ring, ring_attention
from jaxattn.rotary import rotate
from jaxattn.stages import Output, choose_dropout_key, sow_steps


class AttentionLayer(nn.Module):
    """Multi-head attention for real models: `MultiHeadAttention` with more options, each a field of its own.

    With its defaults it is `MultiHeadAttention`: causal self-attention, the same parameters, the same numbers. The
    first four arguments of the call are those of every stage (`stages.py`).

    Args:
        num_heads: number of query heads; must divide `features`.
        features: width of all heads together and of the output.
        dropout_rate: share of the weights that are dropped, in [0, 1).
        use_bias: whether the query, key and value projections add a bias; the output projection always does.
        num_kv_heads: number of KV heads, a divisor of `num_heads`; None is as many (grouped-query attention).
        mask: the mask of every call: `Causal()`, `SlidingWindow(size)`, or None for none, as in BERT and in
            cross-attention.
        rotary_base: rotates queries and keys by their positions, with this base (10_000.0, say); None does not.
        normalize_heads: whether each query and key head is layer-normalized, with a learned scale.
        cache_length: for how many tokens the KV cache of `decode=True` has room.
        dtype: the type to compute in; None is that of `x`.
        param_dtype: the type of the parameters.
        precision: of all matrix products, as in `jax.lax.dot_general`.
        kernel_init: initializer of all kernels.
        bias_init: initializer of all biases.
        implementation: the kernel of `dot_product_attention`; None chooses.
        ring: shards the tokens over a mesh axis, `Ring(mesh, axis)`, see `ring_attention`; without dropout, cache,
            weights, and masks of the call other than `Segments`.

    Args of the call:
        context: the vectors to attend to, `(..., S, d_context)`, in place of `x` (cross-attention).
        mask: combined with the layer's mask: one of `jaxattn.masks` or a boolean array, as in `dot_product_attention`.
        positions: position of each token `(..., T)` for the rotation; None counts from 0, or from the end of the cache.
        decode: attend to the tokens of earlier calls as well, kept in the collection "cache" (pass
            `mutable=["cache"]`), any number of tokens at a time. It is always causal, whatever `mask` says. Where the
            cache has had no room for all tokens, the output is NaN.
        lengths: with `decode`, how many of the T tokens are real in each example `(...)`; the others are padding at the
            end, which is not cached. Traced lengths outside 0 … T give NaN, from then on.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import AttentionLayer
        >>> layer = AttentionLayer(num_heads=4, features=8, num_kv_heads=2, rotary_base=10_000.0, cache_length=16)
        >>> x = jax.random.normal(jax.random.key(0), (6, 8))
        >>> full, variables = layer.init_with_output(jax.random.key(1), x)
        >>> first, cache = layer.apply(variables, x[:5], decode=True, mutable=["cache"])
        >>> last, cache = layer.apply(variables | cache, x[5:], decode=True, mutable=["cache"])
        >>> bool(jnp.allclose(jnp.concatenate([first, last]), full, atol=1e-5))
        True

    References:
        Vaswani et al. 2017, "Attention Is All You Need"; Ainslie et al. 2023, "GQA"; Su et al. 2021, "RoFormer";
        Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters" (normalized heads).
    """

    num_heads: int
    features: int
    dropout_rate: float = 0.0
    use_bias: bool = False
    num_kv_heads: int | None = None
    mask: Mask | None = Causal()
    rotary_base: float | None = None
    normalize_heads: bool = False
    cache_length: int | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    kernel_init: nn.initializers.Initializer = nn.linear.default_kernel_init
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    implementation: Implementation | None = None
    ring: Ring | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch T d_in"],
        deterministic: bool = True,
        dropout_key: Array | None = None,
        return_weights: bool = False,
        *,
        context: Float[Array, "*batch S d_context"] | None = None,
        mask: Any = None,
        positions: Int[Array, "..."] | None = None,
        decode: bool = False,
        lengths: Int[Array, "..."] | None = None,
    ) -> Output:
        x, source, lengths = self._checked(x, context, positions, decode, lengths)
        kv_heads = check_kv_heads(self.num_heads, self.num_kv_heads)
        query = self._heads("query", x, self.num_heads)  # (..., T, H, D)
        key, value = (self._heads(name, source, kv_heads) for name in ("key", "value"))  # (..., S, K, D)
        if self.normalize_heads:
            query, key = self._normalized("query_norm", query), self._normalized("key_norm", key)
        cached = self._cached(key).length if decode else jnp.zeros(x.shape[:-2], jnp.int32)
        if self.rotary_base is not None:
            if positions is None:
                places = jnp.arange(x.shape[-2], dtype=jnp.int32)
                positions = cached[..., None] + places.reshape((1,) * cached.ndim + (-1,))
            query, key = (rotate(heads, positions, self.rotary_base) for heads in (query, key))
        combined = combine(self.mask, mask)
        if decode:
            cache = self._extended(key, value, lengths)
            key, value = cache.key, cache.value
            combined = self._decoding_mask(mask, cached, x.shape[-2], None if lengths is None else cache.length)
        dropout_key = choose_dropout_key(self, self.dropout_rate, deterministic, dropout_key)
        options = {
            "dropout_rate": 0.0 if dropout_key is None else self.dropout_rate,
            "dropout_key": dropout_key,
            "precision": self.precision,
            "implementation": self.implementation,
        }
        weights = None
        if self.ring is not None:
            self._check_ring(mask, dropout_key, return_weights or decode or self.is_mutable_collection("intermediates"))
            segments = {} if mask is None else {"segment_ids": mask.ids, "key_segment_ids": mask.key_ids}
            attended = ring_attention(
                query, key, value, self.mask, **self.ring._asdict(), **segments, precision=self.precision
            )
        elif return_weights:
            call = checked_call(query, key, value, combined, return_weights=True, **options)
            _, weights, _, attended = attend_with_steps(call)
        else:
            attended = attend(checked_call(query, key, value, combined, **options))
        sow_steps(self, query, key, value, combined, **options)
        # (..., T, H, D) -> (..., T, features)
        output = self._dense("out", attended.reshape(*x.shape[:-1], self.features), self.features, True)
        if decode:
            output = jnp.where(cache.is_whole[..., None, None], output, jnp.nan)
            weights = None if weights is None else jnp.where(cache.is_whole[..., None, None, None], weights, jnp.nan)
        return output if weights is None else (output, weights)

    def _check_ring(self, mask: Any, dropout_key: Array | None, needs_one_device: bool) -> None:
        is_supported = mask is None or isinstance(mask, Segments)
        if dropout_key is not None or needs_one_device or not is_supported:
            raise ValueError(
                "ring shards the tokens over devices, without dropout, weights, cache, and masks of the call "
                "other than masks.Segments(ids): write AttentionLayer(ring=None) for these"
            )

    def _dense(self, name: str, x: Array, features: int, use_bias: bool) -> Array:
        dense = nn.Dense(
            features,
            use_bias,
            dtype=x.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            name=name,
        )
        return dense(x)

    def _heads(self, name: str, x: Array, heads: int) -> Array:
        """Project and split: (..., T, d_in) -> (..., T, heads, D)."""
        width = features_per_head(self.num_heads, self.features)
        return self._dense(name, x, heads * width, self.use_bias).reshape(*x.shape[:-1], heads, width)

    def _normalized(self, name: str, heads: Array) -> Array:
        return nn.LayerNorm(use_bias=False, dtype=heads.dtype, param_dtype=self.param_dtype, name=name)(heads)

    def _cached(self, key: Array) -> Cache:
        """Return the cache, or an empty one."""
        if self.has_variable("cache", "key"):
            return Cache(*(self.get_variable("cache", name) for name in Cache._fields))
        return Cache.empty(key, self.cache_length or 0)

    def _extended(self, key: Array, value: Array, lengths: Array | None) -> Cache:
        """Append keys and values to those of earlier calls, and return all of them."""
        cache = self._cached(key)
        extended = cache if self.is_initializing() else cache.append(key, value, lengths)
        for name, array in extended._asdict().items():
            self.put_variable("cache", name, array)
        return extended

    def _decoding_mask(self, mask: Any, cached: Array, T: int, filled: Array | None) -> Mask:
        """Mask the keys after each token, those that are not filled, and what the masks of layer and call mask."""
        # For one token, Lengths says the same as Causal, and more kernels support it.
        causal: Mask = Lengths(cached + 1) if T == 1 else Causal(cached)
        if T > 1 and filled is not None:
            causal = causal & Lengths(filled)
        is_implied = isinstance(self.mask, Causal) and isinstance(self.mask.offset, int) and self.mask.offset >= 0
        combined = combine(None if is_implied else self.mask, mask)
        return causal if combined is None else causal & combined.shifted(cached)

    def _checked(
        self, x: Any, context: Any, positions: Any, decode: bool, lengths: Any
    ) -> tuple[Array, Array, Array | None]:
        """Check the arguments; return the vectors of the queries, those of the keys and values, and the lengths."""
        x = as_tokens("x", x)
        x = x if self.dtype is None else x.astype(self.dtype)
        lengths = None if lengths is None else checked_lengths(lengths, x.shape[:-1], decode)
        if positions is not None and self.rotary_base is None:
            raise ValueError("positions are used by rotary_base alone: write AttentionLayer(rotary_base=10_000.0)")
        if decode and (context is not None or self.cache_length is None):
            raise ValueError(
                "decode=True needs AttentionLayer(cache_length=...), the largest number of tokens in the cache"
                if context is None
                else "decode=True and context exclude each other: a context is complete, so leave decode out"
            )
        if decode and not self.is_mutable_collection("cache"):
            raise ValueError('decode=True updates the cache: write layer.apply(..., decode=True, mutable=["cache"])')
        if context is None:
            return x, x, lengths
        if isinstance(self.mask, Causal | SlidingWindow) or self.rotary_base is not None:
            raise ValueError(
                "context is another sequence, in which the positions of x mean nothing: write "
                "AttentionLayer(mask=None, rotary_base=None) for cross-attention"
            )
        return x, as_tokens("context", context).astype(x.dtype), lengths


def checked_lengths(lengths: Any, shape: tuple[int, ...], decode: bool) -> Array:
    """Return how many tokens of each example `(..., T)` are real, as int32; traced lengths are checked by the cache."""
    if not decode:
        raise ValueError("lengths belongs to decode=True: write mask=masks.Lengths(lengths) to mask padding")
    lengths, (*batch, T) = jnp.asarray(lengths), shape
    if lengths.shape != tuple(batch) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"lengths has shape {lengths.shape} and dtype {lengths.dtype}, but must hold an integer for each example, "
            f"{tuple(batch)}"
        )
    numbers = known(lengths)
    if numbers is not None and not ((numbers >= 0) & (numbers <= T)).all():
        raise ValueError(
            f"lengths are {lengths.tolist()}, but there are {T} tokens, of which from 0 to {T} are real: write "
            f"jnp.clip(lengths, 0, {T})"
        )
    return lengths.astype(jnp.int32)
