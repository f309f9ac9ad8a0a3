"""Additive attention, which came before the dot product: scores by a small neural network."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxattn.checks import as_floating, check_dtypes, check_leading_axes, check_rank, wide_type


def additive_scores(
    query: Float[Array, "*batch T n"], key: Float[Array, "*batch S n"], v: Float[Array, " n"]
) -> Float[Array, "*batch T S"]:
    """Compare every query with every key by v · tanh(query + key).

    It takes the place of `attention_scores`; softmax and context follow as usual, without a scale. Queries and keys are
    projected already, to the same width n. The sums of all pairs take `(..., T, S, n)` numbers of memory, where the dot
    product needs none: one reason why it was replaced.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import additive_scores
        >>> x = jnp.array([[0.0], [100.0]])
        >>> additive_scores(x, x, jnp.array([3.0])).tolist()  # between -3 and 3, however long the vectors are
        [[0.0, 3.0], [3.0, 3.0]]

    References:
        Bahdanau et al. 2014, "Neural Machine Translation by Jointly Learning to Align and Translate", appendix A.1.2.
    """
    query, key, v = as_floating("query", query), as_floating("key", key), as_floating("v", v)
    check_rank("query", query, 2, "T, n")
    check_rank("key", key, 2, "S, n")
    check_dtypes(query=query, key=key, v=v)
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query {query.shape} and key {key.shape} differ in their last axis, over which they are added: project "
            "both to the same width"
        )
    if v.shape != query.shape[-1:]:
        raise ValueError(
            f"v has shape {v.shape}, but must have one number for each element of the queries, {query.shape[-1:]}"
        )
    check_leading_axes(query=query, key=key)
    wide = wide_type(query.dtype)
    # (..., T, 1, n) + (..., 1, S, n) -> (..., T, S, n)
    hidden = jnp.tanh(query.astype(wide)[..., :, None, :] + key.astype(wide)[..., None, :, :])
    return jnp.einsum("...tsn,n->...ts", hidden, v.astype(wide))
