"""Multi-head attention as NNX modules, on the same rules as the Linen layers.

Import it where you need it: `from jaxattn import nnx`. Fields, calls and parameters are those of the Linen modules, so
weights move between the two as they are. What differs:

    in_features, context_features   widths of x and of a context; NNX makes its parameters at once
    rngs                            keys for the parameters, and its `dropout` stream; in a call, in place of dropout_key
    deterministic                   None follows the attribute that `train()`, `eval()` and `nnx.view` set
    cache                           `nnx.Cache` variables below `layer.cache`; `init_cache` makes them before a scan

The stages of the book become NNX modules by Flax's bridge:

    flax.nnx.bridge.ToNNX(jaxattn.CausalAttention(features=2), rngs=nnx.Rngs(0)).lazy_init(x)
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from jaxattn.checks import check_rate
from jaxattn.kernels.call import Implementation
from jaxattn.layer.call import Call
from jaxattn.layer.decoding import Storage, stored
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

Keys = nnx.Rngs | nnx.RngStream | Array | None


class Norm(nnx.Module):
    """Normalizes the last axis, with a learned scale."""

    def __init__(self, width: int, kind: HeadNorm, epsilon: float, scale_init: Any, param_dtype: Any, rngs: nnx.Rngs):
        self.scale = nnx.Param(scale_init(rngs.params(), (width,), param_dtype))
        self.kind, self.epsilon = kind, epsilon

    def __call__(self, vectors: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
        """Normalize."""
        return normalized(vectors, self.scale[...], self.kind, self.epsilon)


class DroppingModule(nnx.Module):
    """The base of modules with dropout and a cache: which keys drop, and what `nnx.view` sets."""

    deterministic: bool
    dropout_rate: float

    def set_view(self, deterministic: bool | None = None) -> None:
        """Set what `nnx.view` was given, in its copy of the module; `nnx.view_info` reads this, with two spaces.

        Args:
          deterministic: True turns dropout off.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def _dropout_key(self, deterministic: bool | None, rngs: Keys) -> Array | None:
        # The attributes may have been set since, by `set_attributes`.
        if check_rate(self.dropout_rate) == 0 or (self.deterministic if deterministic is None else deterministic):
            return None
        stream = self.dropout if rngs is None else rngs
        if stream is None:
            raise ValueError(
                "dropout is on, but the module was made with dropout_rate=0 and has no keys: write "
                "layer(x, rngs=nnx.Rngs(dropout=0))"
            )
        if isinstance(stream, nnx.Rngs):
            stream = stream.dropout
        return stream() if isinstance(stream, nnx.RngStream) else stream


class MultiHeadAttention(DroppingModule):
    """Multi-head attention for real models: `AttentionLayer`, whose documentation holds, in NNX.

    Args:
        in_features: width of the input vectors.
        context_features: width of the vectors of a context; None is `in_features`.
        rngs: keys for the parameters, and its `dropout` stream for dropout.

    Args of the call:
        deterministic: True turns dropout off; None follows the module's attribute, which `module.train()`,
            `module.eval()` and `nnx.view(module, deterministic=True)` set, as for `nnx.Dropout`. At first it is False.
        rngs: keys for dropout, in place of those given to the constructor: `nnx.Rngs`, a stream or a key.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nnx import MultiHeadAttention
        >>> layer = MultiHeadAttention(2, 3, 4, dropout_rate=0.1, rngs=nnx.Rngs(0))
        >>> nnx.jit(lambda layer, x: layer(x))(layer, jnp.ones((8, 6, 3))).shape
        (8, 6, 4)
    """

    def __init__(
        self,
        num_heads: int,
        in_features: int,
        features: int,
        dropout_rate: float = 0.0,
        use_bias: bool = False,
        *,
        num_kv_heads: int | None = None,
        mask: Mask | None = Causal(),  # noqa: B008 (a frozen value)
        rotary_base: float | None = None,
        normalize_heads: bool | HeadNorm = False,
        cache_length: int | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        precision: Any = None,
        kernel_init: nnx.Initializer = nnx.initializers.lecun_normal(),  # noqa: B008
        bias_init: nnx.Initializer = nnx.initializers.zeros_init(),  # noqa: B008
        implementation: Implementation | None = None,
        ring: Ring | None = None,
        head_width: int | None = None,
        out_features: int | None = None,
        use_out_bias: bool = True,
        scale: float | None = None,
        norm_epsilon: float = 1e-6,
        rotary: Rotary | None = None,
        soft_cap: float | None = None,
        sinks: bool = False,
        position_bias: Literal["alibi"] | RelativeBias | None = None,
        rolling_cache: bool = False,
        initializers: Mapping[str, nnx.Initializer] | None = None,
        context_features: int | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.num_heads, self.features, self.use_bias, self.num_kv_heads = num_heads, features, use_bias, num_kv_heads
        self.dropout_rate, self.deterministic = check_rate(dropout_rate), False
        self.mask, self.rotary_base, self.rotary, self.scale = nnx.static(mask), rotary_base, rotary, scale
        self.normalize_heads, self.norm_epsilon = normalize_heads, norm_epsilon
        self.cache_length, self.rolling_cache = cache_length, rolling_cache
        self.dtype, self.param_dtype, self.precision = dtype, param_dtype, precision
        self.kernel_init, self.bias_init = kernel_init, bias_init
        self.initializers = nnx.static(None if initializers is None else tuple(initializers.items()))
        self.implementation, self.ring = implementation, ring
        self.head_width, self.out_features, self.use_out_bias = head_width, out_features, use_out_bias
        self.soft_cap, self.position_bias = soft_cap, position_bias
        self.has_sinks = sinks
        self._make_parameters(in_features, in_features if context_features is None else context_features, rngs)
        self.dropout = rngs.dropout.fork() if self.dropout_rate > 0 else None
