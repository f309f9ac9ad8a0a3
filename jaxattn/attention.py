"""Attention over many heads at once: the arguments checked, then the steps of `functional.py` in their order."""

from typing import Any, Literal

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxattn.checks import as_floating, check_equal_dtypes, check_key, check_rank, check_rate
from jaxattn.functional import attention_scores, attention_weights, context_vectors, dropout
from jaxattn.masks import as_mask


def dot_product_attention(
    query: Float[Array, "*batch T H D"],
    key: Float[Array, "*batch S K D"],
    value: Float[Array, "*batch S K D_v"],
    mask: Any = None,
    *,
    scale: float | None = None,
    bias: Float[Array, "..."] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    return_weights: bool = False,
    implementation: Literal["dense"] | None = None,
) -> Any:
    """Attend with all heads at once: each query averages the values under softmax(scale * query · key + bias).

    Args:
        query: `(..., T, H, D)`, H heads of width D.
        key: `(..., S, K, D)`; K divides H, and with K < H each key head serves H / K neighbouring query heads
            (grouped-query attention).
        value: `(..., S, K, D_v)`.
        mask: who may see whom: one of `jaxattn.masks`, which holds for every head, or a boolean array that
            broadcasts to `(..., H, T, S)`, True = may attend. None hides nothing; nothing is causal unless you say so.
        scale: factor on the dot products; None is 1 / sqrt(D).
        bias: added to the scaled scores before the mask; broadcasts to `(..., H, T, S)`.
        dropout_rate: share of the weights that are dropped, in [0, 1).
        dropout_key: the PRNG key that says which; needed where the rate is above 0. Every head and example drops
            other cells.
        return_weights: return `(context, weights)`, the weights `(..., H, T, S)` as they were before dropout.
        implementation: how it is computed; "dense" is the only way so far, None chooses.

    Returns:
        The context `(..., T, H, D_v)` in the type of `query`; scores, softmax and sums are in float32 or wider. A query
        that may see nothing gets 0.

    Raises:
        TypeError: an input is not floating point, types differ, or the mask is not boolean.
        ValueError: shapes clash, the rate lies outside [0, 1), or the key for dropout is missing.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import dot_product_attention, masks
        >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 5, 4, 8))  # B=2, T=5, H=4, D=8
        >>> dot_product_attention(query, key, value, masks.Causal()).shape
        (2, 5, 4, 8)

    References:
        Vaswani et al. 2017, "Attention Is All You Need", section 3.2; Ainslie et al. 2023, "GQA".
    """
    query, key, value = as_floating("query", query), as_floating("key", key), as_floating("value", value)
    _check_shapes(query, key, value)
    check_equal_dtypes(query=query, key=key, value=value)
    rate = check_rate(dropout_rate)
    if rate > 0:
        dropout_key = check_key("dropout_key", dropout_key)
    if implementation not in (None, "dense"):
        raise ValueError(f"implementation={implementation!r} is not known: write 'dense', or None to have it chosen")

    *batch, T, H, D = query.shape
    S, K = key.shape[-3:-1]
    if scale is None:
        scale = D**-0.5
    # (..., T, H, D) -> (..., K, H / K, T, D), and one of key's and value's heads for each group
    query = jnp.moveaxis(query.reshape(*batch, T, K, H // K, D), -4, -2)
    key, value = (jnp.moveaxis(array, -3, -2)[..., :, None, :, :] for array in (key, value))
    # (..., K, H / K, T, S) -> (..., H, T, S)
    scores = attention_scores(query, key).reshape(*batch, H, T, S)
    scores = scores * jnp.asarray(scale, scores.dtype)
    if bias is not None:
        scores = scores + _bias_array(bias, scores)
    weights = attention_weights(scores, None if mask is None else as_mask(mask).with_heads())
    kept = dropout(weights, rate, dropout_key) if rate > 0 and dropout_key is not None else weights
    # (..., K, H / K, T, D_v) -> (..., T, H, D_v)
    context = context_vectors(kept.reshape(*batch, K, H // K, T, S), value)
    context = jnp.moveaxis(context, -2, -4).reshape(*batch, T, H, value.shape[-1])
    return (context, weights) if return_weights else context


def _check_shapes(query: Array, key: Array, value: Array) -> None:
    check_rank("query", query, 3, "T, H, D")
    check_rank("key", key, 3, "S, K, D")
    check_rank("value", value, 3, "S, K, D")
    shapes = f"query {query.shape}, key {key.shape}, value {value.shape}"
    if not query.shape[:-3] == key.shape[:-3] == value.shape[:-3]:
        raise ValueError(f"{shapes} clash in the axes before the last three: give all the same batch, or use jax.vmap")
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(f"{shapes}: key and value must agree in tokens and heads, for each key has its value")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"{shapes}: query and key must agree in the last axis, the width D over which they are multiplied"
        )
    if query.shape[-2] % max(key.shape[-2], 1):
        raise ValueError(
            f"{shapes}: {query.shape[-2]} query heads cannot share {key.shape[-2]} key heads evenly: the layout is "
            "(..., tokens, heads, width), and the number of key heads must divide that of the query's; "
            "if tokens and heads are swapped, write jnp.swapaxes(query, -3, -2)"
        )


def _bias_array(bias: Any, scores: Array) -> Array:
    bias = as_floating("bias", bias).astype(scores.dtype)
    if bias.ndim > scores.ndim or any(
        m not in (1, n) for m, n in zip(bias.shape[::-1], scores.shape[::-1], strict=False)
    ):
        raise ValueError(
            f"bias has shape {bias.shape}, which does not broadcast to the scores (..., H, T, S) = {scores.shape}"
        )
    return bias.reshape((1,) * (scores.ndim - bias.ndim) + bias.shape)
