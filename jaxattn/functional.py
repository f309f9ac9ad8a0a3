"""The five steps of attention, one pure function each.

    Attention(Q, K, V) = softmax(Q Kᵀ / √d) V        (Vaswani et al. 2017, "Attention Is All You Need", equation 1)

    query    (..., T, d)      T query vectors
    key      (..., S, d)      S key vectors that queries are compared with
    value    (..., S, d_v)    S value vectors, which are averaged
    scores   (..., T, S)      query · key, before scale and mask
    weights  (..., T, S)      each row sums to 1, or to 0 where the query may attend to nothing
    context  (..., T, d_v)    each row is an average of the values, weighted by one row of the weights

Leading axes (batch, heads) are carried along. Scores and weights are in float32 or wider, whatever the inputs are: dot
products in float16 overflow beyond 65504. All functions raise a `TypeError` for types and a `ValueError` for shapes
that do not fit. The sections are those of chapter 3 of *Build a Large Language Model (From Scratch)*.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from jaxattn.checks import as_floating, as_scale, check_dtypes, check_leading_axes, check_rank, check_rate, wide_type
from jaxattn.masks import materialize
from jaxattn.random_bits import draw_bits, drop


def attention_scores(query: Float[Array, "*batch T d"], key: Float[Array, "*batch S d"]) -> Float[Array, "*batch T S"]:
    """Compare every query with every key by their dot product: query · keyᵀ (sections 3.3.1 and 3.4.1).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import attention_scores
        >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> attention_scores(x, x).tolist()
        [[1.0, 0.0], [0.0, 4.0]]
    """
    query, key = as_floating("query", query), as_floating("key", key)
    check_rank("query", query, 2, "T, d")
    check_rank("key", key, 2, "S, d")
    check_dtypes(query=query, key=key)
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query {query.shape} and key {key.shape} differ in their last axis, the width over which a dot product "
            "sums: project both to the same number of features"
        )
    check_leading_axes(query=query, key=key)
    # (..., T, d) · (..., S, d) -> (..., T, S)
    return jnp.einsum("...td,...sd->...ts", query, key, preferred_element_type=wide_type(query.dtype))


def attention_weights(
    scores: Float[Array, "*batch T S"], mask: Any = None, *, scale: float | Float[Array, ""] = 1.0
) -> Float[Array, "*batch T S"]:
    """Turn scores into weights: softmax(scale · scores), with masked scores at −∞ (sections 3.4.2 and 3.5.1).

    `mask` is a boolean array that broadcasts to the scores, True = may attend, or one of `jaxattn.masks`. `scale` is
    1 / √d for queries and keys of width d, the width of one head: it keeps the scores near unit variance.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import attention_weights
        >>> attention_weights(jnp.zeros((2, 2)), mask=jnp.tril(jnp.ones((2, 2), bool))).tolist()
        [[1.0, 0.0], [0.5, 0.5]]
    """
    scores = as_floating("scores", scores)
    check_rank("scores", scores, 2, "T, S")
    wide = wide_type(scores.dtype)
    scores = scores.astype(wide) * jnp.asarray(as_scale(scale, wide), wide)
    allowed = None if mask is None else materialize(mask, scores.shape)
    lowest = float(jnp.finfo(wide).min)  # stands for −∞, which `jax_debug_infs` stops at
    scores = scores if allowed is None else jnp.where(allowed, scores, lowest)
    # Subtracting the row's maximum changes no weight and keeps exp from overflowing. `initial` keeps it finite.
    maximum = lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=lowest))
    exponentials = jnp.exp(scores - maximum)
    exponentials = exponentials if allowed is None else jnp.where(allowed, exponentials, 0)
    total = jnp.sum(exponentials, axis=-1)  # (..., T)
    # An einsum, because its derivative is one too: on a CPU, XLA is slow to sum a product that is not a matrix product.
    return jnp.einsum(
        "...ts,...t->...ts", exponentials, 1 / jnp.where(total == 0, 1, total), precision=lax.Precision.HIGHEST
    )


def renormalized_weights(
    scores: Float[Array, "*batch T S"], mask: Any, *, scale: float | Float[Array, ""] = 1.0
) -> Float[Array, "*batch T S"]:
    """Mask after the softmax: set masked weights to 0 and divide each row by its new sum (section 3.5.1).

    This equals `attention_weights(scores, mask)`, because the softmax's denominator cancels: masked keys do
    not affect the result. It costs one more pass, and underflows where masked keys hold nearly all of the weight.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import renormalized_weights
        >>> renormalized_weights(jnp.zeros((2, 2)), mask=jnp.tril(jnp.ones((2, 2), bool))).tolist()
        [[1.0, 0.0], [0.5, 0.5]]
    """
    weights = attention_weights(scores, scale=scale)
    weights = jnp.where(materialize(mask, weights.shape), weights, 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total == 0, 1, total)


def dropout(weights: Float[Array, "*shape"], rate: float, key: Array) -> Float[Array, "*shape"]:
    """Set each weight to 0 with probability `rate`, and scale the others by 1 / (1 - rate) (section 3.5.2).

    The scaling keeps each weight's expectation, so a row sums to 1 only on average. The factor is not 1 / rate, which
    happens to be the same at the book's rate of 0.5. The same key drops the same entries (Srivastava et al. 2014,
    "Dropout").

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import dropout
        >>> sorted(set(dropout(jnp.ones((4, 4)), 0.2, jax.random.key(0)).ravel().tolist()))
        [0.0, 1.25]
    """
    weights, rate = as_floating("weights", weights), check_rate(rate)
    check_rank("weights", weights, 1, "S")
    return drop(weights, rate, *draw_bits(key, weights.shape))


def context_vectors(
    weights: Float[Array, "*batch T S"], value: Float[Array, "*batch S d_v"]
) -> Float[Array, "*batch T d_v"]:
    """Average the values, weighted by the weights: weights · value, in the type of `value` (sections 3.3.1 and 3.4.1).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import context_vectors
        >>> context_vectors(jnp.array([[0.25, 0.75]]), jnp.array([[4.0, 0.0], [0.0, 8.0]])).tolist()
        [[1.0, 6.0]]
    """
    weights, value = as_floating("weights", weights), as_floating("value", value)
    check_rank("weights", weights, 2, "T, S")
    check_rank("value", value, 2, "S, d_v")
    if weights.shape[-1] != value.shape[-2]:
        raise ValueError(
            f"weights {weights.shape} hold a weight for each of {weights.shape[-1]} keys, but value {value.shape} has "
            f"{value.shape[-2]} rows: pass as many values as keys"
        )
    check_leading_axes(weights=weights, value=value)
    wide = wide_type(weights.dtype, value.dtype)
    # (..., T, S) · (..., S, d_v) -> (..., T, d_v)
    return jnp.einsum("...ts,...sd->...td", weights.astype(wide), value.astype(wide)).astype(value.dtype)
