"""The steps of attention, one pure function each: scores → mask → weights → dropout → context.

    Attention(Q, K, V) = softmax(scale · Q Kᵀ) V        (Vaswani et al. 2017, "Attention Is All You Need", equation 1)

A query asks, every key answers with a score, the softmax turns a row of scores into weights that sum to one, and the
context vector is the values' average under those weights. The letters: T queries, S keys, d the width of a vector;
whatever stands before them (a batch, heads) is carried along. `dot_product_attention` is these functions in order.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, UInt32

from jaxattn.checks import as_boolean, as_floating, check_equal_dtypes, check_key, check_rank, check_rate


def attention_scores(query: Float[Array, "*batch T d"], key: Float[Array, "*batch S d"]) -> Float[Array, "*batch T S"]:
    """Score every query against every key by their dot product; large where the two point the same way.

    Args:
        query: the vectors that ask, `(..., T, d)`.
        key: the vectors that are asked, `(..., S, d)`, of the query's type.

    Returns:
        The raw, unscaled scores `(..., T, S)`, in float32 or wider: half precision would overflow beyond 65504.

    Raises:
        TypeError: the inputs are not floating point, or of different types.
        ValueError: their widths or leading axes clash.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import attention_scores
        >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> attention_scores(x, x).tolist()
        [[1.0, 0.0], [0.0, 4.0]]

    References:
        Build a Large Language Model (From Scratch), sections 3.3.1 and 3.4.1.
    """
    query, key = as_floating("query", query), as_floating("key", key)
    check_rank("query", query, 2, "T, d")
    check_rank("key", key, 2, "S, d")
    check_equal_dtypes(query=query, key=key)
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query {query.shape} and key {key.shape} differ in their last axis, the width over which a dot product "
            "sums: project both to the same number of features"
        )
    _check_leading(query=query, key=key)
    # (..., T, d) · (..., S, d) -> (..., T, S)
    return jnp.einsum("...td,...sd->...ts", query, key, preferred_element_type=wide_type(query.dtype))


def attention_weights(
    scores: Float[Array, "*batch T S"], mask: Any = None, *, scale: float | Float[Array, ""] = 1.0
) -> Float[Array, "*batch T S"]:
    """Turn scores into weights: softmax(scale * scores) over the keys, with hidden keys at exactly zero.

    A hidden score is −inf before the softmax, so that the visible weights of a row sum to 1. A row that may see
    nothing is all 0, with zero gradients, where a plain softmax would divide 0 by 0.

    Args:
        scores: raw scores `(..., T, S)`.
        mask: who may see whom: a boolean array that broadcasts to `(..., T, S)`, True = may attend, or one of
            `jaxattn.masks`. None hides nothing.
        scale: factor on the scores; 1 / sqrt(d) keeps scores of width d near unit variance, so that the softmax
            does not saturate. d is the width of one head, not of the model.

    Returns:
        The weights `(..., T, S)`, in float32 or wider.

    Raises:
        TypeError: the scores are not floating point, or the mask is not boolean.
        ValueError: the mask does not broadcast to the scores.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import attention_weights
        >>> attention_weights(jnp.zeros((2, 2)), mask=jnp.tril(jnp.ones((2, 2), bool))).tolist()
        [[1.0, 0.0], [0.5, 0.5]]

    References:
        Build a Large Language Model (From Scratch), sections 3.4.2 and 3.5.1.
    """
    scores = as_floating("scores", scores)
    check_rank("scores", scores, 2, "T, S")
    wide = wide_type(scores.dtype)
    scores = scores.astype(wide) * jnp.asarray(scale, wide)
    if mask is not None:
        scores = jnp.where(mask_array(mask, scores.shape), scores, -jnp.inf)
    # Shifting a row changes no weight and keeps exp from overflowing; by a finite number, even where all is −inf.
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=jnp.finfo(wide).min))
    exponentials = jnp.exp(scores - highest)
    total = jnp.sum(exponentials, axis=-1)  # (..., T)
    share = 1 / jnp.where(total == 0, 1, total)
    # As einsum, whose derivative is one too: on a CPU the sum of a product takes many times as long otherwise.
    return jnp.einsum("...ts,...t->...ts", exponentials, share, precision=lax.Precision.HIGHEST)


def renormalized_weights(
    scores: Float[Array, "*batch T S"], mask: Any, *, scale: float | Float[Array, ""] = 1.0
) -> Float[Array, "*batch T S"]:
    """Mask the other way round: softmax over all keys first, then zero the hidden weights and divide by the rest.

    The softmax's denominator cancels in the division, so the result equals `attention_weights(scores, mask)`; the
    hidden keys leak nothing. It costs one pass more, and where the hidden keys hold nearly all of the weight, the
    visible ones underflow; so this is for comparing, and `attention_weights` for use.

    Args:
        scores: raw scores `(..., T, S)`.
        mask: as in `attention_weights`.
        scale: factor on the scores.

    Returns:
        The weights `(..., T, S)`, in float32 or wider.

    Raises:
        TypeError: the scores are not floating point, or the mask is not boolean.
        ValueError: the mask does not broadcast to the scores.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import renormalized_weights
        >>> renormalized_weights(jnp.zeros((2, 2)), mask=jnp.tril(jnp.ones((2, 2), bool))).tolist()
        [[1.0, 0.0], [0.5, 0.5]]

    References:
        Build a Large Language Model (From Scratch), section 3.5.1, which shows this way first.
    """
    weights = attention_weights(scores, scale=scale)
    weights = jnp.where(mask_array(mask, weights.shape), weights, 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total == 0, 1, total)


def dropout(weights: Float[Array, "*shape"], rate: float, key: Array) -> Float[Array, "*shape"]:
    """Zero each weight with probability `rate` and multiply the survivors by 1 / (1 - rate).

    The growth keeps every weight's expectation, so nothing needs rescaling when dropout is off; a row's sum is 1
    on average only. (At rate 0.5 one gets 2 from 1 / rate as from 1 / (1 - rate); only the latter is right.)

    Args:
        weights: any array of at least one axis, usually `(..., T, S)`.
        rate: share of the weights that are dropped, in [0, 1).
        key: one PRNG key; the same key drops the same cells.

    Returns:
        An array of the same shape and type.

    Raises:
        TypeError: `weights` is not floating point, or `key` is no PRNG key.
        ValueError: the rate lies outside [0, 1), or the key is missing or a batch of keys.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import dropout
        >>> sorted(set(dropout(jnp.ones((4, 4)), 0.2, jax.random.key(0)).ravel().tolist()))
        [0.0, 1.25]

    References:
        Srivastava et al. 2014, "Dropout"; Build a Large Language Model (From Scratch), section 3.5.2.
    """
    weights, rate = as_floating("weights", weights), check_rate(rate)
    check_rank("weights", weights, 1, "S")
    rows, columns = dropout_words(key, weights.shape)
    return jnp.where(kept_cells(rows, columns, rate), weights * jnp.asarray(1 / (1 - rate), weights.dtype), 0)


def context_vectors(
    weights: Float[Array, "*batch T S"], value: Float[Array, "*batch S d"]
) -> Float[Array, "*batch T d"]:
    """Average the values under the weights: row t of the result is the sum over s of weights[t, s] * value[s].

    Args:
        weights: attention weights `(..., T, S)`.
        value: the vectors to average, `(..., S, d)`.

    Returns:
        The context vectors `(..., T, d)`, summed in float32 or wider and rounded once, to the type of `value`.

    Raises:
        TypeError: an input is not floating point.
        ValueError: the number of keys or the leading axes clash.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import context_vectors
        >>> context_vectors(jnp.array([[0.25, 0.75]]), jnp.array([[4.0, 0.0], [0.0, 8.0]])).tolist()
        [[1.0, 6.0]]

    References:
        Build a Large Language Model (From Scratch), sections 3.3.1 and 3.4.1.
    """
    weights, value = as_floating("weights", weights), as_floating("value", value)
    check_rank("weights", weights, 2, "T, S")
    check_rank("value", value, 2, "S, d")
    if weights.shape[-1] != value.shape[-2]:
        raise ValueError(
            f"weights {weights.shape} hold a weight for each of {weights.shape[-1]} keys, but value {value.shape} has "
            f"{value.shape[-2]} rows: pass as many values as keys"
        )
    _check_leading(weights=weights, value=value)
    wide = wide_type(weights.dtype, value.dtype)
    # (..., T, S) · (..., S, d) -> (..., T, d)
    return jnp.einsum("...ts,...sd->...td", weights.astype(wide), value.astype(wide)).astype(value.dtype)


def mask_array(mask: Any, shape: tuple[int, ...]) -> Bool[Array, "*shape"]:
    """Spread a mask over scores of the given shape; True = may attend.

    Args:
        mask: a boolean array that broadcasts to `shape`, or one of `jaxattn.masks`.
        shape: the scores' shape `(..., T, S)`.

    Returns:
        A boolean array of exactly that shape.

    Raises:
        TypeError: the mask is not boolean.
        ValueError: it does not broadcast to `shape`.

    Example:
        >>> from jaxattn import masks
        >>> from jaxattn.functional import mask_array
        >>> mask_array(masks.Causal(), (2, 2)).tolist()
        [[True, False], [True, True]]
    """
    mask = as_boolean("mask", mask.array(*shape[-2:]) if hasattr(mask, "array") else mask)
    if mask.ndim > len(shape) or any(m not in (1, n) for m, n in zip(mask.shape[::-1], shape[::-1], strict=False)):
        raise ValueError(
            f"mask has shape {mask.shape}, which does not broadcast to the scores {shape}: its last two axes are "
            "queries and keys, so write mask[:, None] to put a heads axis into a mask of (batch, T, S)"
        )
    return jnp.broadcast_to(mask, shape)


def dropout_words(key: Array, shape: tuple[int, ...]) -> tuple[UInt32[Array, "*rows 1"], UInt32[Array, "*ones S"]]:
    """Draw a random word for every row and every column of `shape`; `kept_cells` mixes them into one for each cell.

    So the memory is linear, any block of cells follows from its rows and columns, and no cell depends on the others.
    """
    row_key, column_key = jax.random.split(check_key("key", key))
    rows = jax.random.bits(row_key, shape[:-1], jnp.uint32)[..., None]
    return rows, jax.random.bits(column_key, shape[-1:], jnp.uint32).reshape((1,) * (len(shape) - 1) + shape[-1:])


def kept_cells(rows: UInt32[Array, "*#shape"], columns: UInt32[Array, "*#shape"], rate: float) -> Bool[Array, "*shape"]:
    """Say for every cell whether it survives dropout, with probability 1 - rate, from its row's and column's words.

    The words' exclusive or goes through a 32-bit finalizer in which each input bit flips each output bit about half
    of the time (xor-shifts and odd multipliers after C. Wellons, "Prospecting for Hash Functions", 2018).
    """
    word = rows ^ columns
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return (word ^ (word >> 16)) >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def products_of(precision: lax.Precision | None) -> Any:
    """Return a context in which matrix products have this precision; None leaves it as it is."""
    return contextlib.nullcontext() if precision is None else jax.default_matmul_precision(precision.name.lower())


def wide_type(*dtypes: Any) -> Any:
    """Return the type to compute in: float32, or float64 where an input has it."""
    return jnp.float64 if jnp.float64 in dtypes else jnp.float32


def _check_leading(**arrays: Array) -> None:
    """Leading axes agree, or are 1, as in grouped-query attention, where several heads share a key."""
    (first, a), (second, b) = arrays.items()
    if a.ndim != b.ndim or any(m != n and 1 not in (m, n) for m, n in zip(a.shape[:-2], b.shape[:-2], strict=True)):
        raise ValueError(
            f"{first} {a.shape} and {second} {b.shape} clash in the axes before the last two (batch, heads): "
            "give both the same leading axes, or use jax.vmap over the one that only one of them has"
        )
