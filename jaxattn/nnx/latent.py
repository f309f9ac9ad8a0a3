"""Latent attention as an NNX module; the rules are in `jaxattn/layer/latent.py`."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.core import FrozenDict
from jax import Array
from jaxtyping import Float, Int

from jaxattn.checks import check_rate
from jaxattn.kernels.call import Implementation
from jaxattn.layer.call import Call
from jaxattn.layer.forward import Face
from jaxattn.layer.heads import check_initializers, parameter_init
from jaxattn.layer.latent import empty_latent_cache, has_bias, latent_forward, latent_paths, latent_sizes
from jaxattn.masks import Causal, Mask
from jaxattn.nnx.base import DroppingModule, Keys, Norm, as_attribute, nnx_dense, nnx_project, nnx_storage
from jaxattn.rotary import Rotary
from jaxattn.stages import Output


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
        self.norm_epsilon, self.scale, self.rotary, self.mask = norm_epsilon, scale, rotary, as_attribute(mask)
        self.cache_length, self.dtype, self.param_dtype, self.precision = cache_length, dtype, param_dtype, precision
        self.kernel_init, self.bias_init, self.implementation = kernel_init, bias_init, implementation
        self.initializers: Any = None if initializers is None else FrozenDict(initializers)
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
        call = Call(
            dropout_key=dropout_key,
            return_weights=return_weights,
            context=None,
            mask=mask,
            positions=positions,
            decode=decode,
            lengths=lengths,
        )
        face = Face(self._project, self._normalize, self._kernel, nnx_storage(self))
        return latent_forward(self, face, x, call)

    def init_cache(self, *batch: int, dtype: Any = None) -> None:
        """Make an empty cache for a batch, as in `MultiHeadAttention`."""
        dtype = dtype or self.dtype or self.param_dtype
        nnx_storage(self).write(**empty_latent_cache(self, batch, dtype))

    def _project(self, name: str, x: Array) -> Array:
        return nnx_project(self, name, x)

    def _normalize(self, name: str, vectors: Array) -> Array:
        return getattr(self, name)(vectors)

    def _kernel(self, name: str) -> Array:
        return getattr(self, name).kernel[...]
