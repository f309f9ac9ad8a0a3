"""Stage 4 with what today's models add to it; parameters have the same names, and those of stage 4 fit."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxattn.attention import attend, attend_with_steps
from jaxattn.cache import Cache
from jaxattn.checks import as_tokens, check_kv_heads, features_per_head
from jaxattn.kernels.call import Implementation, checked_call
from jaxattn.masks import Causal, Mask, Segments, SlidingWindow, combine
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
            cache has no room left, the output is NaN.
        lengths: with `decode`, how many of the T tokens are real in each example `(...)`; the others are padding at the
            end.

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
        x, source = self._checked(x, context, positions, decode, lengths)
        kv_heads = check_kv_heads(self.num_heads, self.num_kv_heads)
        query = self._heads("query", x, self.num_heads)  # (..., T, H, D)
        key, value = (self._heads(name, source, kv_heads) for name in ("key", "value"))  # (..., S, K, D)
        if self.normalize_heads:
            query, key = self._normalized("query_norm", query), self._normalized("key_norm", key)
        cached = self._cached(key).length if decode else jnp.zeros(x.shape[:-2], jnp.int32)
        if self.rotary_base is not None:
            if positions is None:
                positions = cached[..., None] + jnp.arange(x.shape[-2]).reshape((1,) * cached.ndim + (-1,))
            query, key = (rotate(heads, positions, self.rotary_base) for heads in (query, key))
        combined = combine(self.mask, mask)
        if decode:
            key, value = self._extended(key, value, lengths)
            combined = Causal(cached) if combined is None else Causal(cached) & combined.shifted(cached)
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
            segments = None if mask is None else mask.ids
            attended = ring_attention(query, key, value, self.mask, **self.ring._asdict(), segment_ids=segments)
        elif return_weights:
            call = checked_call(query, key, value, combined, return_weights=True, **options)
            _, weights, _, attended = attend_with_steps(call)
        else:
            attended = attend(checked_call(query, key, value, combined, **options))
        sow_steps(self, query, key, value, combined, **options)
        # (..., T, H, D) -> (..., T, features)
        output = self._dense("out", self.features, True)(attended.reshape(*x.shape[:-1], self.features))
        return output if weights is None else (output, weights)

    def _check_ring(self, mask: Any, dropout_key: Array | None, needs_one_device: bool) -> None:
        if dropout_key is not None or needs_one_device or not (mask is None or isinstance(mask, Segments)):
            raise ValueError(
                "ring shards the tokens over devices, without dropout, weights, cache, and masks of the call "
                "other than masks.Segments(ids): write AttentionLayer(ring=None) for these"
            )

    def _dense(self, name: str, features: int, use_bias: bool) -> nn.Dense:
        return nn.Dense(
            features,
            use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            name=name,
        )

    def _heads(self, name: str, x: Array, heads: int) -> Array:
        """Project and split: (..., T, d_in) -> (..., T, heads, D)."""
        width = features_per_head(self.num_heads, self.features)
        return self._dense(name, heads * width, self.use_bias)(x).reshape(*x.shape[:-1], heads, width)

    def _normalized(self, name: str, heads: Array) -> Array:
        return nn.LayerNorm(use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype, name=name)(heads)

    def _cached(self, key: Array) -> Cache:
        """Return the cache, or an empty one."""
        if self.has_variable("cache", "key"):
            return Cache(*(self.get_variable("cache", name) for name in Cache._fields))
        return Cache.empty(key, self.cache_length or 0)

    def _extended(self, key: Array, value: Array, lengths: Array | None) -> tuple[Array, Array]:
        """Append keys and values to those of earlier calls, and return all of them."""
        cache = self._cached(key)
        extended = cache if self.is_initializing() else cache.append(key, value, lengths)
        for name, array in extended._asdict().items():
            self.put_variable("cache", name, array)
        return extended.key, extended.value

    def _checked(self, x: Any, context: Any, positions: Any, decode: bool, lengths: Any) -> tuple[Array, Array]:
        """Check the arguments; return the vectors of the queries and those of the keys and values."""
        x = _vectors("x", x, self.dtype)
        if lengths is not None and not decode:
            raise ValueError("lengths belongs to decode=True: write mask=masks.Lengths(lengths) to mask padding")
        if lengths is not None and (
            jnp.shape(lengths) != x.shape[:-2] or not jnp.issubdtype(jnp.result_type(lengths), jnp.integer)
        ):
            raise ValueError(
                f"lengths is {lengths!r}, but must hold an integer for each example of x {x.shape}, {x.shape[:-2]}"
            )
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
            return x, x
        if isinstance(self.mask, Causal | SlidingWindow) or self.rotary_base is not None:
            raise ValueError(
                "context is another sequence, in which the positions of x mean nothing: write "
                "AttentionLayer(mask=None, rotary_base=None) for cross-attention"
            )
        return x, _vectors("context", context, self.dtype)


def _vectors(name: str, x: Any, dtype: Any) -> Array:
    x = as_tokens(name, x)
    return x if dtype is None else x.astype(dtype)
