"""Stage 4 with what today's models add to it; parameters have the same names, and those of stage 4 fit."""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxattn.kernels.call import Implementation
from jaxattn.layer.call import Call
from jaxattn.layer.decoding import Storage
from jaxattn.layer.forward import Face, forward
from jaxattn.layer.heads import (
    HeadNorm,
    RelativeBias,
    check_initializers,
    head_norm_of,
    normalized,
    parameter_init,
    parameter_paths,
    sizes,
)
from jaxattn.masks import Causal, Mask
from jaxattn.ring import Ring
from jaxattn.rotary import Rotary
from jaxattn.stages import Output, choose_dropout_key, sow_steps


class AttentionLayer(nn.Module):
    """Multi-head attention for real models: `MultiHeadAttention` with more options, each a field of its own.

    With its defaults it is `MultiHeadAttention`: causal self-attention, the same parameters, the same numbers. The
    first four arguments of the call are those of every stage (`stages.py`).

    Args:
        num_heads: number of query heads; must divide `features`.
        features: width of all heads together and of the output, unless `head_width` and `out_features` say otherwise.
        dropout_rate: share of the weights that are dropped, in [0, 1).
        use_bias: whether the query, key and value projections add a bias.
        num_kv_heads: number of KV heads, a divisor of `num_heads`; None is as many (grouped-query attention).
        mask: the mask of every call: `Causal()`, `SlidingWindow(size)`, or None for none, as in BERT and in
            cross-attention.
        rotary_base: rotates queries and keys by their positions, with this base (10_000.0, say); None does not.
        normalize_heads: whether each query and key head is normalized, with a learned scale: True or "layer" for layer
            normalization, "rms" for division by the root mean square, "rms_plus_one" for that times 1 + scale (Gemma).
        cache_length: for how many tokens the KV cache of `decode=True` has room.
        dtype: the type to compute in; None is that of `x`.
        param_dtype: the type of the parameters.
        precision: of all matrix products, as in `jax.lax.dot_general`.
        kernel_init: initializer of all kernels.
        bias_init: initializer of all biases.
        implementation: the kernel of `dot_product_attention`; None chooses.
        ring: shards the tokens over a mesh axis, `Ring(mesh, axis)`, see `ring_attention`; without cache and
            weights.
        head_width: width D of a head; None is features / num_heads.
        out_features: width of the output; None is `features`.
        use_out_bias: whether the output projection adds a bias.
        scale: factor on the dot products; None is 1 / √D.
        norm_epsilon: what is added to the variance or mean square of a head.
        rotary: how to rotate, in place of `rotary_base`: `Rotary(base, width, interleaved, scaling)`.
        soft_cap: c replaces a score s by c · tanh(s / c), before the mask (Gemma 2).
        use_sinks: whether each head has a learned number that joins the softmax as one more score, without a value
            (gpt-oss): the parameter "sinks" `(H,)`.
        position_bias: what is added to the scores by distance: "alibi", or `RelativeBias(...)` with a learned table,
            the parameter "relative_bias" `(num_buckets, H)`.
        rolling_cache: whether the KV cache holds the tokens of the window alone; with `mask=SlidingWindow(size)`, and
            no `cache_length`.
        initializers: initializers of single parameters by their paths, {"out/kernel": ..., "query_norm/scale": ...,
            "sinks": ...}; so each can have axis names, by `nn.with_logical_partitioning` or `nnx.with_partitioning`.

    Args of the call:
        context: the vectors to attend to, `(..., S, d_context)`, in place of `x` (cross-attention).
        mask: combined with the layer's mask: one of `jaxattn.masks` or a boolean array, as in `dot_product_attention`.
        positions: position of each token `(..., T)` for the rotation; None counts from 0, or from the end of the cache.
        decode: attend to the tokens of earlier calls as well, kept in the collection "cache" (pass
            `mutable=["cache"]`), any number of tokens at a time. It is always causal, whatever `mask` says. Where the
            cache has had no room for all tokens, the output is NaN.
        lengths: with `decode`, how many of the T tokens are real in each example `(...)`; the others are padding at the
            end, which is not cached. Traced lengths outside 0 … T give NaN, from then on.
        keep_context: keep the keys and values of `context` in the collection "cache"; later calls leave `context` out.

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
        Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters" (normalized heads); Zhang and
        Sennrich 2019, "Root Mean Square Layer Normalization"; Gemma Team 2024, "Gemma 2" (soft cap); Xiao et al. 2023,
        "Efficient Streaming Language Models with Attention Sinks"; OpenAI 2025, "gpt-oss" (learned sinks); Press et al.
        2021, "Train Short, Test Long" (ALiBi); Raffel et al. 2020, "T5" (relative bias).
    """

    num_heads: int
    features: int
    dropout_rate: float = 0.0
    use_bias: bool = False
    num_kv_heads: int | None = None
    mask: Mask | None = Causal()
    rotary_base: float | None = None
    normalize_heads: bool | HeadNorm = False
    cache_length: int | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    kernel_init: nn.initializers.Initializer = nn.linear.default_kernel_init
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    implementation: Implementation | None = None
    ring: Ring | None = None
    head_width: int | None = None
    out_features: int | None = None
    use_out_bias: bool = True
    scale: float | None = None
    norm_epsilon: float = 1e-6
    rotary: Rotary | None = None
    soft_cap: float | None = None
    use_sinks: bool = False
    position_bias: Literal["alibi"] | RelativeBias | None = None
    rolling_cache: bool = False
    initializers: Mapping[str, nn.initializers.Initializer] | None = None

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
        keep_context: bool = False,
    ) -> Output:
        check_initializers(self, parameter_paths(self))
        dropout_key = choose_dropout_key(self, self.dropout_rate, deterministic, dropout_key)
        call = Call(
            dropout_key=dropout_key,
            return_weights=return_weights,
            context=context,
            mask=mask,
            positions=positions,
            decode=decode,
            lengths=lengths,
            keep_context=keep_context,
        )
        return forward(self, self._face(), x, call)

    def _face(self) -> Face:
        collects_steps = self.is_mutable_collection("intermediates")
        return Face(
            project=self._project,
            normalize=self._normalize,
            parameter=self._parameter,
            storage=linen_storage(self),
            sow_steps=functools.partial(sow_steps, self) if collects_steps else None,
        )

    def _project(self, name: str, x: Array) -> Array:
        use_bias = self.use_out_bias if name == "out" else self.use_bias
        return linen_dense(self, name, x, sizes(self).features[name], use_bias)

    def _normalize(self, name: str, heads: Array) -> Array:
        kind = head_norm_of(self)
        assert kind is not None
        init = parameter_init(self, f"{name}/scale")
        return Norm(kind, self.norm_epsilon, self.param_dtype, init, name=name)(heads)

    def _parameter(self, name: str) -> Array:
        shape: tuple[int, ...] = (self.num_heads,)
        if name == "relative_bias" and isinstance(self.position_bias, RelativeBias):
            shape = (self.position_bias.num_buckets, self.num_heads)
        return self.param(name, parameter_init(self, name), shape, self.param_dtype)


class Norm(nn.Module):
    """Normalizes the last axis, with a learned scale."""

    kind: HeadNorm
    epsilon: float
    param_dtype: Any
    scale_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, vectors: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
        """Normalize."""
        scale = self.param("scale", self.scale_init, vectors.shape[-1:], self.param_dtype)
        return normalized(vectors, scale, self.kind, self.epsilon)


def linen_dense(layer: Any, name: str, x: Array, features: int, use_bias: bool) -> Array:
    """Project vectors by a dense layer of a Linen module, in their type."""
    dense = nn.Dense(
        features,
        use_bias,
        dtype=x.dtype,
        param_dtype=layer.param_dtype,
        precision=layer.precision,
        kernel_init=parameter_init(layer, f"{name}/kernel"),
        bias_init=parameter_init(layer, f"{name}/bias"),
        name=name,
    )
    return dense(x)


def linen_storage(module: nn.Module) -> Storage:
    """Return how a Linen module keeps arrays between calls: in the collection "cache"."""

    def read(*names: str) -> tuple[Array, ...] | None:
        if not module.has_variable("cache", names[0]):
            return None
        return tuple(module.get_variable("cache", name) for name in names)

    def write(**arrays: Array) -> None:
        if not module.is_mutable_collection("cache"):
            raise ValueError(
                "decode=True and keep_context=True update the cache: write "
                'layer.apply(..., decode=True, mutable=["cache"])'
            )
        for name, array in arrays.items():
            module.put_variable("cache", name, array)

    return Storage(read, write, module.is_initializing())
