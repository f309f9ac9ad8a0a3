"""Multi-head attention as NNX modules, on the same rules as the Linen layers.

Import it where you need it: `from jaxattn import nnx`. Fields, calls and parameters are those of the Linen modules, so
weights move between the two as they are. What differs:

    in_features, context_features   widths of x and of a context; NNX makes its parameters at once
    rngs                            keys for the parameters, and its `dropout` stream; in a call, for dropout_key
    deterministic                   None follows the attribute that `train()`, `eval()` and `nnx.view` set
    cache                           `nnx.Cache` variables below `layer.cache`; `init_cache` makes them before a scan

The stages of the book become NNX modules by Flax's bridge:

    flax.nnx.bridge.ToNNX(jaxattn.CausalAttention(features=2), rngs=nnx.Rngs(0)).lazy_init(x)
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from flax.core import FrozenDict
from jax import Array
from jaxtyping import Float, Int

from jaxattn.checks import check_rate
from jaxattn.kernels.call import Implementation
from jaxattn.layer.call import Call
from jaxattn.layer.decoding import Storage, empty_cache
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
from jaxattn.layer.latent import empty_latent_cache, has_bias, latent_forward, latent_paths, latent_sizes
from jaxattn.masks import Causal, Mask
from jaxattn.ring import Ring
from jaxattn.rotary import Rotary
from jaxattn.stages import Output

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
        use_sinks: bool = False,
        position_bias: Literal["alibi"] | RelativeBias | None = None,
        rolling_cache: bool = False,
        initializers: Mapping[str, nnx.Initializer] | None = None,
        context_features: int | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.num_heads, self.features, self.use_bias, self.num_kv_heads = num_heads, features, use_bias, num_kv_heads
        self.dropout_rate, self.deterministic = check_rate(dropout_rate), False
        self.mask, self.rotary_base, self.rotary, self.scale = mask, rotary_base, rotary, scale
        self.normalize_heads, self.norm_epsilon = normalize_heads, norm_epsilon
        self.cache_length, self.rolling_cache = cache_length, rolling_cache
        self.dtype, self.param_dtype, self.precision = dtype, param_dtype, precision
        self.kernel_init, self.bias_init = kernel_init, bias_init
        self.initializers = None if initializers is None else FrozenDict(initializers)
        self.implementation, self.ring = implementation, ring
        self.head_width, self.out_features, self.use_out_bias = head_width, out_features, use_out_bias
        self.soft_cap, self.use_sinks, self.position_bias = soft_cap, use_sinks, position_bias
        self.in_features = in_features
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
        call = Call(dropout_key, return_weights, context, mask, positions, decode, lengths, keep_context)
        face = Face(self._project, self._normalize, self._parameter, nnx_storage(self))
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
        return getattr(self, name)(x)

    def _normalize(self, name: str, heads: Array) -> Array:
        return getattr(self, name)(heads)

    def _parameter(self, name: str) -> Array:
        return getattr(self, name)[...]


class LatentAttention(DroppingModule):
    """Multi-head latent attention: `jaxattn.LatentAttention`, whose documentation holds, in NNX.

    `in_features` is the width of the input vectors; `rngs` has the keys, as in `MultiHeadAttention`.
    """

    def __init__(
        self,
        num_heads: int,
        in_features: int,
        features: int,
        latent_width: int,
        head_width: int,
        rotary_width: int,
        value_width: int | None = None,
        query_width: int | None = None,
        dropout_rate: float = 0.0,
        use_bias: bool = False,
        *,
        norm_epsilon: float = 1e-6,
        scale: float | None = None,
        rotary: Rotary = Rotary(),  # noqa: B008 (a frozen value)
        mask: Mask | None = Causal(),  # noqa: B008 (a frozen value)
        cache_length: int | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        precision: Any = None,
        kernel_init: nnx.Initializer = nnx.initializers.lecun_normal(),  # noqa: B008
        bias_init: nnx.Initializer = nnx.initializers.zeros_init(),  # noqa: B008
        implementation: Implementation | None = None,
        initializers: Mapping[str, nnx.Initializer] | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.num_heads, self.in_features, self.features = num_heads, in_features, features
        self.latent_width, self.head_width, self.rotary_width = latent_width, head_width, rotary_width
        self.value_width, self.query_width = value_width, query_width
        self.dropout_rate, self.use_bias, self.deterministic = check_rate(dropout_rate), use_bias, False
        self.norm_epsilon, self.scale, self.rotary, self.mask = norm_epsilon, scale, rotary, mask
        self.cache_length, self.dtype, self.param_dtype, self.precision = cache_length, dtype, param_dtype, precision
        self.kernel_init, self.bias_init, self.implementation = kernel_init, bias_init, implementation
        self.initializers = None if initializers is None else FrozenDict(initializers)
        check_initializers(self, latent_paths(self))
        size = latent_sizes(self)
        inputs = {"query_up": query_width, "key_up": latent_width, "value_up": latent_width}
        inputs["out"] = size.H * size.value
        for name, width in size.features.items():
            dense = nnx_dense(self, name, inputs.get(name) or in_features, width, has_bias(self, name), rngs)
            setattr(self, name, dense)
        for name, width in size.normalized.items():
            init = parameter_init(self, f"{name}/scale")
            setattr(self, name, Norm(width, "rms", norm_epsilon, init, param_dtype, rngs))
        self.dropout = rngs.dropout.fork() if self.dropout_rate > 0 else None

    def __call__(
        self,
        x: Float[Array, "*batch T d_in"],
        *,
        deterministic: bool | None = None,
        rngs: Keys = None,
        return_weights: bool = False,
        mask: Any = None,
        positions: Int[Array, "..."] | None = None,
        decode: bool = False,
        lengths: Int[Array, "..."] | None = None,
    ) -> Output:
        """Attend."""
        dropout_key = self._dropout_key(deterministic, rngs)
        call = Call(dropout_key, return_weights, None, mask, positions, decode, lengths)
        face = Face(self._apply, self._apply, self._kernel, nnx_storage(self))
        return latent_forward(self, face, x, call)

    def init_cache(self, *batch: int, dtype: Any = None) -> None:
        """Make an empty cache for a batch, as in `MultiHeadAttention`."""
        dtype = dtype or self.dtype or self.param_dtype
        nnx_storage(self).write(**empty_latent_cache(self, batch, dtype))

    def _apply(self, name: str, x: Array) -> Array:
        return getattr(self, name)(x)

    def _kernel(self, name: str) -> Array:
        return getattr(self, name).kernel[...]


def nnx_dense(layer: Any, name: str, in_features: int, features: int, use_bias: bool, rngs: nnx.Rngs) -> nnx.Linear:
    """Return a dense layer that computes in the type of the vectors, as those of the Linen modules do."""
    return nnx.Linear(
        in_features,
        features,
        use_bias=use_bias,
        param_dtype=layer.param_dtype,
        precision=layer.precision,
        kernel_init=parameter_init(layer, f"{name}/kernel"),
        bias_init=parameter_init(layer, f"{name}/bias"),
        promote_dtype=_to_type_of_vectors,
        rngs=rngs,
    )


def _to_type_of_vectors(arrays: tuple[Any, ...], *, dtype: Any = None, **_: Any) -> tuple[Any, ...]:
    dtype = arrays[0].dtype if dtype is None else dtype
    return tuple(None if array is None else array.astype(dtype) for array in arrays)


def nnx_storage(module: nnx.Module) -> Storage:
    """Return how an NNX module keeps arrays between calls: in `nnx.Cache` variables below `module.cache`."""

    def read(*names: str) -> tuple[Array, ...] | None:
        cache = getattr(module, "cache", None)
        if cache is None or names[0] not in cache:
            return None
        return tuple(cache[name][...] for name in names)

    def write(**arrays: Array) -> None:
        if getattr(module, "cache", None) is None:
            module.cache = nnx.Dict()
        for name, array in arrays.items():
            if name in module.cache and module.cache[name].shape == array.shape:
                module.cache[name][...] = array
            else:
                module.cache[name] = nnx.Cache(array)

    return Storage(read, write)
