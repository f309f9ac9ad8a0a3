"""Multi-head attention as an NNX module; the rules are in `jaxattn/layer`."""

from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from flax.core import FrozenDict
from jax import Array
from jaxtyping import Float, Int

from jaxattn.checks import as_size, check_rate
from jaxattn.kernels.call import Implementation
from jaxattn.layer.call import Call, check_rolling
from jaxattn.layer.decoding import empty_cache
from jaxattn.layer.forward import Face, forward
from jaxattn.layer.heads import (
    HeadNorm,
    RelativeBias,
    check_initializers,
    head_norm_of,
    parameter_init,
    parameter_paths,
    sizes,
)
from jaxattn.masks import Causal, Mask
from jaxattn.nnx.base import DroppingModule, Keys, Norm, as_attribute, nnx_dense, nnx_project, nnx_storage, steps_sower
from jaxattn.ring import Ring
from jaxattn.rotary import Rotary
from jaxattn.stages import Output


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
        use_sinks: bool = False,
        position_bias: Literal["alibi"] | RelativeBias | None = None,
        rolling_cache: bool = False,
        initializers: Mapping[str, nnx.Initializer] | None = None,
        context_features: int | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.num_heads, self.features, self.use_bias, self.num_kv_heads = num_heads, features, use_bias, num_kv_heads
        self.dropout_rate, self.deterministic = check_rate(dropout_rate), False
        self.mask, self.rotary_base, self.rotary, self.scale = as_attribute(mask), rotary_base, rotary, scale
        self.normalize_heads, self.norm_epsilon = normalize_heads, norm_epsilon
        self.cache_length, self.rolling_cache = cache_length, rolling_cache
        self.dtype, self.param_dtype, self.precision = dtype, param_dtype, precision
        self.kernel_init, self.bias_init = kernel_init, bias_init
        self.initializers: Any = None if initializers is None else FrozenDict(initializers)
        self.implementation, self.ring = implementation, ring
        self.head_width, self.out_features, self.use_out_bias = head_width, out_features, use_out_bias
        self.soft_cap, self.use_sinks, self.position_bias = soft_cap, use_sinks, position_bias
        if rolling_cache:
            check_rolling(self)
        self.in_features = as_size("in_features", in_features)
        self._make_parameters(in_features if context_features is None else context_features, rngs)
        self.dropout = rngs.dropout.fork() if self.dropout_rate > 0 else None

    def __call__(
        self,
        x: Float[Array, "*batch T d_in"],
        *,
        deterministic: bool | None = None,
        rngs: Keys = None,
        return_weights: bool = False,
        context: Float[Array, "*batch S d_context"] | None = None,
        mask: Any = None,
        positions: Int[Array, "..."] | None = None,
        decode: bool = False,
        lengths: Int[Array, "..."] | None = None,
        keep_context: bool = False,
    ) -> Output:
        """Attend."""
        dropout_key = self._dropout_key(deterministic, rngs)
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
        face = Face(self._project, self._normalize, self._parameter, nnx_storage(self), steps_sower(self))
        return forward(self, face, x, call)

    def init_cache(self, *batch: int, dtype: Any = None) -> None:
        """Make an empty KV cache for a batch, in place of one that there is: to begin anew, or before a scan.

        Args:
            batch: the batch axes `(...)` of the vectors to come.
            dtype: the type of these vectors; None is that of the layer, or of its parameters.
        """
        _H, K, D, _ = sizes(self)
        dtype = dtype or self.dtype or self.param_dtype
        heads = jnp.zeros((*batch, 0, K, D), dtype)
        nnx_storage(self).write(**empty_cache(self, heads, heads)._asdict())

    def _make_parameters(self, context_features: int, rngs: nnx.Rngs) -> None:
        check_initializers(self, parameter_paths(self))
        size = sizes(self)
        widths = {"query": self.in_features, "key": context_features, "value": context_features, "out": size.H * size.D}
        for name, features in size.features.items():
            use_bias = self.use_out_bias if name == "out" else self.use_bias
            setattr(self, name, nnx_dense(self, name, widths[name], features, use_bias, rngs))
        kind = head_norm_of(self)
        if kind is not None:
            for name in ("query_norm", "key_norm"):
                init = parameter_init(self, f"{name}/scale")
                setattr(self, name, Norm(size.D, kind, self.norm_epsilon, init, self.param_dtype, rngs))
        if self.use_sinks:
            self.sinks = nnx.Param(parameter_init(self, "sinks")(rngs.params(), (size.H,), self.param_dtype))
        if isinstance(self.position_bias, RelativeBias):
            shape = self.position_bias.num_buckets, size.H
            init = parameter_init(self, "relative_bias")
            self.relative_bias = nnx.Param(init(rngs.params(), shape, self.param_dtype))

    def _project(self, name: str, x: Array) -> Array:
        return nnx_project(self, name, x)

    def _normalize(self, name: str, heads: Array) -> Array:
        return getattr(self, name)(heads)

    def _parameter(self, name: str) -> Array:
        return getattr(self, name)[...]
