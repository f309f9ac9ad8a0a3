"""Stage 4 with what today's models add to it; the parameters are called alike, and those of stage 4 fit."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxattn.attention import Implementation, check_call, run_call
from jaxattn.cache import Cache
from jaxattn.checks import as_tokens
from jaxattn.masks import Causal, Mask, Segments, SlidingWindow, both
from jaxattn.ring import Ring, ring_attention
from jaxattn.rotary import rotate
from jaxattn.stages import choose_dropout_key, features_per_head, key_heads


class AttentionLayer(nn.Module):
    """Multi-head attention for real models: `MultiHeadAttention` with options, each a field of its own.

    With its defaults it is `MultiHeadAttention`: causal self-attention, same parameters, same numbers.

    Args:
        num_heads: how many query heads; must divide `features`.
        features: width in total, of all heads together and of the output.
        dropout_rate: share of the weights that are dropped in training, in [0, 1).
        use_bias: whether the projections to query, key and value add a bias; the output projection always does.
        num_kv_heads: how many key and value heads, a divisor of `num_heads`; None is as many (grouped-query attention).
        mask: who may see whom in every call: `Causal()`, `SlidingWindow(size)`, or None for everyone, as in BERT and in
            cross-attention.
        rotary_base: turns queries and keys by their positions, with this base (10_000.0, say); None does not.
        normalize_heads: whether each query and key head is layer-normalised, with a learned scale.
        cache_length: for how many tokens `decode=True` makes room.
        dtype: the type to compute in; None is that of `x`.
        param_dtype: the type of the parameters.
        precision: that of all matrix products, as in `jax.lax.dot_general`.
        kernel_init: initialiser of all kernels.
        bias_init: initialiser of all biases.
        implementation: how `dot_product_attention` computes it; None chooses the fastest.
        ring: spreads the tokens over the devices of a mesh axis, `Ring(mesh, axis)`; see `ring_attention`. It takes no
            dropout, no cache and no mask but `Segments` in the call.

    Args of the call:
        x: token vectors `(..., T, d_in)`.
        deterministic: True leaves dropout off.
        dropout_key: PRNG key for dropout; None takes the module's `"dropout"` stream.
        return_weights: return `(output, weights)`, the weights before dropout.
        context: the vectors to attend to, `(..., S, d_context)`, in place of `x` itself (cross-attention).
        mask: what this call hides besides, one of `jaxattn.masks` or a boolean array, as in `dot_product_attention`.
        positions: position of each token `(..., T)` for the rotary turn; None counts from 0, or from the cache's end.
        decode: attend to the tokens of earlier calls as well, kept in the collection `"cache"` (pass
            `mutable=["cache"]`). Any number of tokens at a time; each example goes on where its own tokens ended. It
            is always causal, whatever `mask` says; where the cache has no room left, the output is NaN.
        lengths: with `decode`, how many of the T tokens are real in each example `(...)`; the rest is padding, behind.

    Returns:
        Output vectors `(..., T, features)`; weights `(..., num_heads, T, S)`.

    Raises:
        TypeError: `x` or `context` is not floating point, or the mask is not boolean.
        ValueError: sizes do not divide, arguments exclude each other, or as `MultiHeadAttention`.

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
        Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters" (normalised heads).
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
    ) -> Any:
        x, source = self._check(x, context, positions, decode, lengths)
        query = self._heads("query", x, self.num_heads)  # (..., T, H, D)
        key = self._heads("key", source, key_heads(self.num_heads, self.num_kv_heads))  # (..., S, K, D)
        value = self._heads("value", source, key_heads(self.num_heads, self.num_kv_heads))
        if self.normalize_heads:
            query, key = self._normalized("query_norm", query), self._normalized("key_norm", key)
        before = self._cached(key).length if decode else jnp.zeros(x.shape[:-2], jnp.int32)
        if self.rotary_base is not None:
            if positions is None:
                positions = before[..., None] + jnp.arange(x.shape[-2]).reshape((1,) * before.ndim + (-1,))
            query, key = (rotate(heads, positions, self.rotary_base) for heads in (query, key))
        shown = both(self.mask, mask)
        if decode:
            key, value = self._extend(key, value, lengths)
            shown = Causal(before) if shown is None else Causal(before) & shown.shifted(before)

        dropout_key = choose_dropout_key(self, self.dropout_rate, deterministic, dropout_key)
        wants_weights = return_weights or self.is_mutable_collection("intermediates")
        call = check_call(
            query,
            key,
            value,
            shown,
            dropout_rate=0.0 if dropout_key is None else self.dropout_rate,
            dropout_key=dropout_key,
            precision=self.precision,
        )
        if self.ring is not None:
            self._check_ring(mask, dropout_key, wants_weights or decode)
            segments = None if mask is None else mask.ids
            attended = ring_attention(query, key, value, self.mask, **self.ring._asdict(), segment_ids=segments)
        else:
            attended = run_call(call, wants_weights, self.implementation)
        if wants_weights:
            attended, weights = attended
            self.sow("intermediates", "weights", weights)
        # (..., T, H, D) -> (..., T, features)
        output = self._dense("out", self.features, True)(attended.reshape(*x.shape[:-1], self.features))
        return (output, weights) if return_weights else output

    def _check_ring(self, mask: Any, dropout_key: Array | None, needs_one_device: bool) -> None:
        if dropout_key is not None or needs_one_device or not (mask is None or isinstance(mask, Segments)):
            raise ValueError(
                "ring spreads the tokens over devices, where there are no dropout, weights, cache, nor masks of a call "
                "but masks.Segments(ids): write AttentionLayer(ring=None) for these"
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
        """Project and cut: (..., T, d_in) -> (..., T, heads, D)."""
        width = features_per_head(self.num_heads, self.features)
        return self._dense(name, heads * width, self.use_bias)(x).reshape(*x.shape[:-1], heads, width)

    def _normalized(self, name: str, heads: Array) -> Array:
        return nn.LayerNorm(use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype, name=name)(heads)

    def _cached(self, key: Array) -> Cache:
        """The cache as it is, or an empty one."""
        if self.has_variable("cache", "key"):
            return Cache(*(self.get_variable("cache", name) for name in Cache._fields))
        return Cache.empty(key, self.cache_length or 0)

    def _extend(self, key: Array, value: Array, lengths: Array | None) -> tuple[Array, Array]:
        """Store keys and values behind those of earlier calls, and return all of them."""
        cache = self._cached(key)
        extended = cache if self.is_initializing() else cache.append(key, value, lengths)
        for name, array in extended._asdict().items():
            self.put_variable("cache", name, array)
        return extended.key, extended.value

    def _check(self, x: Any, context: Any, positions: Any, decode: bool, lengths: Any) -> tuple[Array, Array]:
        """Check what belongs together; return the vectors that ask and those that are asked."""
        x = _vectors("x", x, self.dtype)
        if lengths is not None and not decode:
            raise ValueError("lengths belongs to decode=True: write mask=masks.Lengths(lengths) to hide padding")
        if lengths is not None and (
            jnp.shape(lengths) != x.shape[:-2] or not jnp.issubdtype(jnp.result_type(lengths), jnp.integer)
        ):
            raise ValueError(
                f"lengths is {lengths!r}, but must hold a whole number for each example of x {x.shape}, {x.shape[:-2]}"
            )
        if positions is not None and self.rotary_base is None:
            raise ValueError("positions turns nothing without rotary_base: write AttentionLayer(rotary_base=10_000.0)")
        if decode and (context is not None or self.cache_length is None):
            raise ValueError(
                "decode=True needs AttentionLayer(cache_length=...), the most tokens it will see"
                if context is None
                else "decode=True and context exclude each other: a context is there as a whole, so leave decode out"
            )
        if decode and not self.is_mutable_collection("cache"):
            raise ValueError('decode=True changes the cache: write layer.apply(..., decode=True, mutable=["cache"])')
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
