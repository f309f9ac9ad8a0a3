"""Latent attention as a Linen module; the rules are in `latent.py`."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxattn.kernels.call import Implementation
from jaxattn.layer.call import Call
from jaxattn.layer.forward import Face
from jaxattn.layer.heads import check_initializers, parameter_init
from jaxattn.layer.latent import has_bias, latent_forward, latent_paths, latent_sizes
from jaxattn.layer.linen import Norm, linen_dense, linen_storage
from jaxattn.masks import Causal, Mask
from jaxattn.rotary import Rotary
from jaxattn.stages import Output, choose_dropout_key


class LatentAttention(nn.Module):
    """Multi-head latent attention: all keys and values come from one short vector a token, and that is what is cached.

    Args:
        num_heads: number of heads H.
        features: width of the output.
        latent_width: width of the vector that keys and values are projected from, and that the cache holds.
        head_width: width of the part of each query and key that is not rotated.
        rotary_width: width of the part that is rotated; its key is shared by all heads, and cached too.
        value_width: width of a head's values; None is `head_width`.
        query_width: width of a short vector that queries are projected from; None projects them from `x`.
        dropout_rate: share of the weights that are dropped, in [0, 1).
        use_bias: whether the projections from and to the token vectors add a bias; that of queries does only if
            `query_width` is given.
        norm_epsilon: what is added to the mean square of the short vectors.
        scale: factor on the dot products; None is 1 / √(head_width + rotary_width).
        rotary: how to rotate.
        mask: the mask of every call.
        cache_length: for how many tokens the cache of `decode=True` has room.
        dtype: the type to compute in; None is that of `x`.
        param_dtype: the type of the parameters.
        precision: of all matrix products, as in `jax.lax.dot_general`.
        kernel_init: initializer of all kernels.
        bias_init: initializer of all biases.
        implementation: the kernel of `dot_product_attention`; None chooses.
        initializers: initializers of single parameters by their paths, as in `AttentionLayer`.

    The arguments of the call are those of `AttentionLayer`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import LatentAttention
        >>> layer = LatentAttention(4, 8, latent_width=6, head_width=4, rotary_width=2, cache_length=9)
        >>> x = jax.random.normal(jax.random.key(0), (9, 8))
        >>> full, variables = layer.init_with_output(jax.random.key(1), x)
        >>> decoded, cache = layer.apply(variables, x, decode=True, mutable=["cache"])
        >>> bool(jnp.allclose(decoded, full, atol=1e-5)), cache["cache"]["latent"].shape
        (True, (9, 1, 6))

    References:
        DeepSeek-AI 2024, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model".
    """

    num_heads: int
    features: int
    latent_width: int
    head_width: int
    rotary_width: int
    value_width: int | None = None
    query_width: int | None = None
    dropout_rate: float = 0.0
    use_bias: bool = False
    norm_epsilon: float = 1e-6
    scale: float | None = None
    rotary: Rotary = Rotary()
    mask: Mask | None = Causal()
    cache_length: int | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    kernel_init: nn.initializers.Initializer = nn.linear.default_kernel_init
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    implementation: Implementation | None = None
    initializers: Mapping[str, nn.initializers.Initializer] | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch T d_in"],
        deterministic: bool = True,
        dropout_key: Array | None = None,
        return_weights: bool = False,
        *,
        mask: Any = None,
        positions: Int[Array, "..."] | None = None,
        decode: bool = False,
        lengths: Int[Array, "..."] | None = None,
    ) -> Output:
        check_initializers(self, latent_paths(self))
        dropout_key = choose_dropout_key(self, self.dropout_rate, deterministic, dropout_key)
        call = Call(
            dropout_key=dropout_key,
            return_weights=return_weights,
            context=None,
            mask=mask,
            positions=positions,
            decode=decode,
            lengths=lengths,
        )
        face = Face(self._project, self._normalize, self._parameter, linen_storage(self))
        return latent_forward(self, face, x, call)

    def _project(self, name: str, x: Array) -> Array:
        return linen_dense(self, name, x, latent_sizes(self).features[name], has_bias(self, name))

    def _normalize(self, name: str, vectors: Array) -> Array:
        init = parameter_init(self, f"{name}/scale")
        return Norm("rms", self.norm_epsilon, self.param_dtype, init, name=name)(vectors)

    def _parameter(self, name: str) -> Array:
        shape = self.latent_width, latent_sizes(self).features[name]
        return Kernel(shape, parameter_init(self, f"{name}/kernel"), self.param_dtype, name=name)()


class Kernel(nn.Module):
    """The kernel of a dense layer, by itself."""

    shape: tuple[int, ...]
    kernel_init: nn.initializers.Initializer
    param_dtype: Any

    @nn.compact
    def __call__(self) -> Array:
        """Return the kernel."""
        return self.param("kernel", self.kernel_init, self.shape, self.param_dtype)
