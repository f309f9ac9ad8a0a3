"""The four stages of self-attention as Flax modules, in the order of the book, each only what the last one lacks.

    1  SimpleSelfAttention         no weights: a token's context is an average of all tokens, by similarity
    2  SelfAttention               new: trainable query, key and value projections, scaled scores
    3  CausalAttention             new: no token sees a later one; dropout on the weights
    4a MultiHeadAttentionWrapper   new: several heads, one after the other, side by side in the output
    4b MultiHeadAttention          new: all heads in one computation, an output projection

Every module is written for one sequence `x` of shape `(T, d_in)`; leading batch axes are carried along, and `jax.vmap`
over a batch gives the same. Every module is called alike, `module.apply(variables, x, deterministic=True,
dropout_key=None, return_weights=False)`: with `return_weights=True` the result is `(output, weights)`, the weights as
they were before dropout; dropout is on where `deterministic=False`, with `dropout_key` or else the `"dropout"` stream.
The weights are also sown into the collection `intermediates` for whoever asks for it.

References:
    Build a Large Language Model (From Scratch), chapter 3.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxattn.attention import Implementation, dot_product_attention
from jaxattn.checks import as_tokens, check_rate
from jaxattn.functional import attention_scores, attention_weights, context_vectors, dropout
from jaxattn.masks import Causal


class SimpleSelfAttention(nn.Module):
    """Stage 1: self-attention without weights; the tokens are queries, keys and values themselves.

    Args of the call:
        x: token vectors `(..., T, d)`.
        deterministic, dropout_key: without effect, as nothing is dropped here; so all stages are called alike.
        return_weights: return `(output, weights)`.

    Returns:
        Context vectors `(..., T, d)`; weights `(..., T, T)`.

    Raises:
        TypeError: `x` is not floating point.
        ValueError: `x` has fewer than two axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import SimpleSelfAttention
        >>> SimpleSelfAttention().apply({}, jnp.ones((3, 2))).tolist()
        [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]

    References:
        Build a Large Language Model (From Scratch), section 3.3.
    """

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch T d"],
        deterministic: bool = True,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Any:
        x = as_tokens("x", x)
        scores = attention_scores(x, x)  # (..., T, T)
        weights = attention_weights(scores)
        context = context_vectors(weights, x)
        self.sow("intermediates", "weights", weights)
        return (context, weights) if return_weights else context


class SelfAttention(nn.Module):
    """Stage 2. New: trainable projections to query, key and value; scores scaled by 1 / sqrt(features).

    Args:
        features: width of the query, key, value and context vectors.
        use_bias: whether the projections add a bias.

    Args of the call:
        x: token vectors `(..., T, d_in)`.
        deterministic, dropout_key: without effect, as nothing is dropped here.
        return_weights: return `(output, weights)`.

    Returns:
        Context vectors `(..., T, features)`; weights `(..., T, T)`.

    Raises:
        TypeError: `x` is not floating point.
        ValueError: `x` has fewer than two axes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import SelfAttention
        >>> output, variables = SelfAttention(features=2).init_with_output(jax.random.key(0), jnp.ones((6, 3)))
        >>> output.shape, variables["params"]["query"]["kernel"].shape
        ((6, 2), (3, 2))

    References:
        Build a Large Language Model (From Scratch), section 3.4.
    """

    features: int
    use_bias: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch T d_in"],
        deterministic: bool = True,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Any:
        query, key, value = _project(as_tokens("x", x), self.features, self.use_bias)
        scores = attention_scores(query, key)  # (..., T, T)
        weights = attention_weights(scores, scale=self.features**-0.5)
        context = context_vectors(weights, value)
        self.sow("intermediates", "weights", weights)
        return (context, weights) if return_weights else context


class CausalAttention(nn.Module):
    """Stage 3. New: the causal mask, so that no token sees a later one, and dropout on the weights.

    The mask is made in the computation: it is no parameter, has no gradient, and fits every length.

    Args:
        features: width of the query, key, value and context vectors.
        dropout_rate: share of the weights that are dropped in training, in [0, 1).
        use_bias: whether the projections add a bias.

    Args of the call:
        x: token vectors `(..., T, d_in)`.
        deterministic: True leaves dropout off.
        dropout_key: PRNG key for dropout; None takes the module's `"dropout"` stream.
        return_weights: return `(output, weights)`, the weights before dropout, whose rows sum to 1.

    Returns:
        Context vectors `(..., T, features)`; weights `(..., T, T)`.

    Raises:
        TypeError: `x` is not floating point.
        ValueError: `x` has fewer than two axes, the rate lies outside [0, 1), or dropout is on and has no key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import CausalAttention
        >>> module, xs = CausalAttention(features=2, dropout_rate=0.5), jnp.ones((4, 6, 3))
        >>> variables = module.init(jax.random.key(0), xs[0])
        >>> apply = lambda x, key: module.apply(variables, x, deterministic=False, dropout_key=key)
        >>> jax.vmap(apply)(xs, jax.random.split(jax.random.key(1), 4)).shape  # each example drops other cells
        (4, 6, 2)

    References:
        Build a Large Language Model (From Scratch), section 3.5.
    """

    features: int
    dropout_rate: float = 0.0
    use_bias: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch T d_in"],
        deterministic: bool = True,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Any:
        query, key, value = _project(as_tokens("x", x), self.features, self.use_bias)
        scores = attention_scores(query, key)  # (..., T, T)
        mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        weights = attention_weights(scores, mask, scale=self.features**-0.5)
        dropout_key = choose_dropout_key(self, self.dropout_rate, deterministic, dropout_key)
        kept = weights if dropout_key is None else dropout(weights, self.dropout_rate, dropout_key)
        context = context_vectors(kept, value)
        self.sow("intermediates", "weights", weights)
        return (context, weights) if return_weights else context


class MultiHeadAttentionWrapper(nn.Module):
    """Stage 4, first way. New: several causal heads with weights of their own, their contexts side by side.

    Args:
        num_heads: how many heads.
        features: width of each head, as in the book; the output is `num_heads * features` wide.
        dropout_rate: share of the weights that are dropped in training, in [0, 1).
        use_bias: whether the projections add a bias.

    Args of the call:
        x: token vectors `(..., T, d_in)`.
        deterministic: True leaves dropout off.
        dropout_key: PRNG key for dropout, split over the heads; None takes the module's `"dropout"` stream.
        return_weights: return `(output, weights)`, the weights before dropout.

    Returns:
        Context vectors `(..., T, num_heads * features)`; weights `(..., num_heads, T, T)`.

    Raises:
        TypeError: `x` is not floating point.
        ValueError: fewer than one head, or as `CausalAttention`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import MultiHeadAttentionWrapper
        >>> module = MultiHeadAttentionWrapper(num_heads=2, features=2)
        >>> module.init_with_output(jax.random.key(0), jnp.ones((6, 3)))[0].shape
        (6, 4)

    References:
        Build a Large Language Model (From Scratch), section 3.6.1.
    """

    num_heads: int
    features: int
    dropout_rate: float = 0.0
    use_bias: bool = False

    def setup(self) -> None:
        """Make the heads, `heads_0`, `heads_1` and so on in the parameters."""
        if self.num_heads < 1:
            raise ValueError(f"num_heads={self.num_heads} must be at least 1: write num_heads=1 for a single head")
        self.heads = [CausalAttention(self.features, self.dropout_rate, self.use_bias) for _ in range(self.num_heads)]

    def __call__(
        self,
        x: Float[Array, "*batch T d_in"],
        deterministic: bool = True,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Any:
        """Run head after head."""
        keys = [None] * self.num_heads if dropout_key is None else jax.random.split(dropout_key, self.num_heads)
        outputs = [head(x, deterministic, key, True) for head, key in zip(self.heads, keys, strict=True)]
        context = jnp.concatenate([context for context, _ in outputs], axis=-1)  # (..., T, num_heads * features)
        weights = jnp.stack([weights for _, weights in outputs], axis=-3)  # (..., num_heads, T, T)
        return (context, weights) if return_weights else context


class MultiHeadAttention(nn.Module):
    """Stage 4, second way. New: all heads in one computation, and a projection that mixes their contexts.

    One wide query, key and value are computed and then cut into heads; the kernel's columns are the heads' kernels
    side by side. The cut comes before the heads move to the front: `(T, features)` is first viewed as
    `(T, num_heads, features / num_heads)`; transposed first, the tokens and features would be scrambled.

    Args:
        num_heads: how many heads; must divide `features`.
        features: width in total, of all heads together and of the output.
        dropout_rate: share of the weights that are dropped in training, in [0, 1).
        use_bias: whether the projections to query, key and value add a bias; the output projection always does.
        implementation: how `dot_product_attention` computes it; None chooses the fastest.

    Args of the call:
        x: token vectors `(..., T, d_in)`.
        deterministic: True leaves dropout off.
        dropout_key: PRNG key for dropout; None takes the module's `"dropout"` stream.
        return_weights: return `(output, weights)`, the weights before dropout.

    Returns:
        Output vectors `(..., T, features)`; weights `(..., num_heads, T, T)`.

    Raises:
        TypeError: `x` is not floating point.
        ValueError: the heads do not divide the features, or as `CausalAttention`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import MultiHeadAttention
        >>> module = MultiHeadAttention(num_heads=2, features=4)
        >>> variables = module.init(jax.random.key(0), jnp.ones((6, 3)))
        >>> output, weights = module.apply(variables, jnp.ones((6, 3)), return_weights=True)
        >>> output.shape, weights.shape
        ((6, 4), (2, 6, 6))

    References:
        Build a Large Language Model (From Scratch), section 3.6.2; Vaswani et al. 2017, section 3.2.2.
    """

    num_heads: int
    features: int
    dropout_rate: float = 0.0
    use_bias: bool = False
    implementation: Implementation | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch T d_in"],
        deterministic: bool = True,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Any:
        x = as_tokens("x", x)
        head_features = features_per_head(self.num_heads, self.features)
        heads = (*x.shape[:-1], self.num_heads, head_features)
        # (..., T, features) -> (..., T, H, D)
        query, key, value = (array.reshape(heads) for array in _project(x, self.features, self.use_bias))
        dropout_key = choose_dropout_key(self, self.dropout_rate, deterministic, dropout_key)
        wants_weights = return_weights or self.is_mutable_collection("intermediates")
        context = dot_product_attention(
            query,
            key,
            value,
            Causal(),
            dropout_rate=0.0 if dropout_key is None else self.dropout_rate,
            dropout_key=dropout_key,
            return_weights=wants_weights,
            implementation=self.implementation,
        )
        if wants_weights:
            context, weights = context
            self.sow("intermediates", "weights", weights)
        # (..., T, H, D) -> (..., T, features)
        output = nn.Dense(self.features, dtype=x.dtype, name="out")(context.reshape(*x.shape[:-1], self.features))
        return (output, weights) if return_weights else output


def parallel_from_stacked(params: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the parameters of a `MultiHeadAttentionWrapper` into those of the `MultiHeadAttention` that equals it.

    The heads' kernels are set side by side, and the output projection, which stacked heads lack, is the identity.

    Args:
        params: `variables["params"]` of `MultiHeadAttentionWrapper(num_heads, features)`.

    Returns:
        Parameters for `MultiHeadAttention(num_heads, num_heads * features)`.

    Raises:
        ValueError: `params` has no heads.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import MultiHeadAttention, MultiHeadAttentionWrapper, parallel_from_stacked
        >>> x = jax.random.normal(jax.random.key(1), (6, 3))
        >>> stacked, variables = MultiHeadAttentionWrapper(2, 2).init_with_output(jax.random.key(0), x)
        >>> params = parallel_from_stacked(variables["params"])
        >>> bool(jnp.allclose(MultiHeadAttention(2, 4).apply({"params": params}, x), stacked, atol=1e-6))
        True

    References:
        Build a Large Language Model (From Scratch), section 3.6.2.
    """
    heads = [params[f"heads_{i}"] for i in range(len(params)) if f"heads_{i}" in params]
    if not heads or len(heads) != len(params):
        raise ValueError(
            f"params holds {sorted(params)}, but a MultiHeadAttentionWrapper has heads_0, heads_1, …: "
            'pass variables["params"] of one'
        )
    parallel = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=-1), *heads)
    width, dtype = parallel["value"]["kernel"].shape[-1], parallel["value"]["kernel"].dtype
    return {**parallel, "out": {"kernel": jnp.eye(width, dtype=dtype), "bias": jnp.zeros(width, dtype)}}


def choose_dropout_key(module: nn.Module, rate: float, deterministic: bool, dropout_key: Array | None) -> Array | None:
    """Return the key to drop with: the given one, else one of the module's `"dropout"` stream; None drops nothing.

    Raises:
        ValueError: dropout is on, and there is neither; or the rate lies outside [0, 1).
    """
    if check_rate(rate) == 0 or deterministic:
        return None
    if dropout_key is not None:
        return dropout_key
    if module.has_rng("dropout"):
        return module.make_rng("dropout")
    raise ValueError(
        f"{type(module).__name__} with dropout_rate={rate} and deterministic=False drops weights at random and has no "
        "key: write module.apply(variables, x, deterministic=False, dropout_key=jax.random.key(0)), "
        'or rngs={"dropout": jax.random.key(0)}'
    )


def _project(x: Array, features: int, use_bias: bool) -> list[Array]:
    """Query, key and value `(..., T, features)`: three dense layers of the module whose call is running."""
    if features < 1:
        raise ValueError(f"features={features} must be at least 1: it is the width of the vectors that come out")
    return [nn.Dense(features, use_bias, dtype=x.dtype, name=name)(x) for name in ("query", "key", "value")]


def features_per_head(num_heads: int, features: int) -> int:
    """Return the width of each head, or raise a ValueError where the heads do not divide the features."""
    if num_heads < 1:
        raise ValueError(f"num_heads={num_heads} must be at least 1: write num_heads=1 for a single head")
    if features % num_heads:
        below, above = features // num_heads * num_heads, -(-features // num_heads) * num_heads
        choices = " or ".join(f"features={width}" for width in (below, above) if width)
        raise ValueError(
            f"features={features} is the total width of {num_heads} heads, and {num_heads} does not divide it: write "
            f"{choices} (MultiHeadAttentionWrapper is the one whose features are per head)"
        )
    return features // num_heads


def key_heads(num_heads: int, num_kv_heads: int | None) -> int:
    """Return how many key heads there are, or raise a ValueError where they do not divide the query heads."""
    heads = num_heads if num_kv_heads is None else num_kv_heads
    if heads < 1 or num_heads % heads:
        raise ValueError(
            f"num_kv_heads={heads} must divide num_heads={num_heads}, for each key head serves as many query heads: "
            "write num_kv_heads=1 for one that serves all"
        )
    return heads
