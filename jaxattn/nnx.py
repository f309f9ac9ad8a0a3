"""Multi-head attention as an NNX module, on the same functions as `AttentionLayer`.

Import it where you need it: `from jaxattn import nnx`. Parameters have the names and shapes of the Linen modules, so
weights move between the two as they are. The stages of the book become NNX modules by Flax's bridge:

    flax.nnx.bridge.ToNNX(jaxattn.CausalAttention(features=2), rngs=nnx.Rngs(0)).lazy_init(x)
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from jaxattn.attention import dot_product_attention
from jaxattn.checks import as_tokens, check_kv_heads, check_rate, features_per_head
from jaxattn.kernels.call import Implementation
from jaxattn.masks import Causal, Mask, combine
from jaxattn.rotary import rotate


class MultiHeadAttention(nnx.Module):
    """Multi-head attention: causal by default, with an output projection, as `jaxattn.MultiHeadAttention`.

    Args:
        num_heads: number of query heads; must divide `features`.
        in_features: width of the input vectors.
        features: width of all heads together and of the output.
        dropout_rate: share of the weights that are dropped, in [0, 1).
        use_bias: whether the query, key and value projections add a bias; the output projection always does.
        num_kv_heads: number of KV heads, a divisor of `num_heads`; None is as many.
        mask: the mask of every call; None masks nothing.
        rotary_base: rotates queries and keys by their positions, with this base; None does not.
        implementation: the kernel of `dot_product_attention`; None chooses.
        dtype: the type to compute in; None is that of the parameters and vectors.
        param_dtype: the type of the parameters.
        rngs: keys for the parameters, and its `dropout` stream for dropout.

    Args of the call:
        x: token vectors `(..., T, in_features)`.
        deterministic: True turns dropout off; None follows the module's attribute, which `module.train()`,
            `module.eval()` and `nnx.view(module, deterministic=True)` set, as for `nnx.Dropout`. At first it is False.
        mask: combined with the module's mask.
        positions: position of each token `(..., T)` for the rotation; None counts from 0.
        rngs: keys for dropout, in place of those given to the constructor: `nnx.Rngs`, a stream or a key.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nnx import MultiHeadAttention
        >>> layer = MultiHeadAttention(2, 3, 4, dropout_rate=0.1, rngs=nnx.Rngs(0))
        >>> nnx.jit(lambda layer, x: layer(x))(layer, jnp.ones((8, 6, 3))).shape
        (8, 6, 4)

    References:
        Vaswani et al. 2017, "Attention Is All You Need"; Build a Large Language Model (From Scratch), section 3.6.2.
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
        implementation: Implementation | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.num_heads, self.features = num_heads, features
        self.dropout_rate = check_rate(dropout_rate)
        self.num_kv_heads = check_kv_heads(num_heads, num_kv_heads)
        self.mask, self.rotary_base, self.implementation = mask, rotary_base, implementation
        self.deterministic = False
        width = features_per_head(num_heads, features)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query = nnx.Linear(in_features, features, use_bias=use_bias, **options)
        self.key = nnx.Linear(in_features, self.num_kv_heads * width, use_bias=use_bias, **options)
        self.value = nnx.Linear(in_features, self.num_kv_heads * width, use_bias=use_bias, **options)
        self.out = nnx.Linear(features, features, **options)
        self.dropout = rngs.dropout.fork() if self.dropout_rate > 0 else None

    def __call__(
        self,
        x: Float[Array, "*batch T d_in"],
        *,
        deterministic: bool | None = None,
        mask: Any = None,
        positions: Int[Array, "..."] | None = None,
        rngs: nnx.Rngs | nnx.RngStream | Array | None = None,
    ) -> Float[Array, "*batch T features"]:
        """Attend."""
        x = as_tokens("x", x)
        if positions is not None and self.rotary_base is None:
            raise ValueError("positions are used by rotary_base alone: write MultiHeadAttention(rotary_base=1e4)")
        width = self.features // self.num_heads
        # (..., T, features) -> (..., T, H, D)
        query, key, value = (
            array.reshape(*x.shape[:-1], -1, width) for array in (self.query(x), self.key(x), self.value(x))
        )
        if self.rotary_base is not None:
            positions = jnp.arange(x.shape[-2], dtype=jnp.int32) if positions is None else positions
            query, key = (rotate(heads, positions, self.rotary_base) for heads in (query, key))
        dropout_key = self._dropout_key(deterministic, rngs)
        context = dot_product_attention(
            query,
            key,
            value,
            combine(self.mask, mask),
            dropout_rate=0.0 if dropout_key is None else self.dropout_rate,
            dropout_key=dropout_key,
            implementation=self.implementation,
        )
        # (..., T, H, D) -> (..., T, features)
        return self.out(context.reshape(*x.shape[:-1], self.features))

    def set_view(self, deterministic: bool | None = None) -> None:
        """Set what `nnx.view` was given, in its copy of the module; `nnx.view_info` reads this, with two spaces.

        Args:
          deterministic: True turns dropout off.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def _dropout_key(self, deterministic: bool | None, rngs: nnx.Rngs | nnx.RngStream | Array | None) -> Array | None:
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
