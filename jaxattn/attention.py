"""Attention over many heads at once: the arguments checked, an implementation chosen, and why that one in words."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxattn.checks import as_floating, check_equal_dtypes, check_key, check_rank, check_rate
from jaxattn.fast.blockwise import blockwise_attention
from jaxattn.fast.cudnn import cudnn_attention, why_not_cudnn
from jaxattn.functional import attention_scores, attention_weights, context_vectors, dropout, products_of, wide_type
from jaxattn.masks import Mask, as_mask

Implementation = Literal["dense", "blockwise", "cudnn"]

# Up to so many cells of scores, a head's or the whole call's, whole arrays stay in the caches and blocks only add
# overhead; measured on CPUs by scripts/benchmark.py.
SMALL_HEAD, SMALL_CALL = 96 * 96, 2**17


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
    implementation: Implementation | None = None,
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
        implementation: how it is computed, with equal results: "dense" stores all weights, "blockwise" never does, its
            memory is linear in the tokens, "cudnn" is NVIDIA's kernel. None chooses by device, type, shape and mask;
            `explain_implementation` says which and why. Returned weights are always computed by "dense".

    Returns:
        The context `(..., T, H, D_v)` in the type of `query`; scores, softmax and sums are in float32 or wider. A query
        that may see nothing gets 0.

    Raises:
        TypeError: an input is not floating point, types differ, or the mask is not boolean.
        ValueError: shapes clash, the rate lies outside [0, 1), the key for dropout is missing, or the implementation
            asked for cannot compute this.

    Derivatives in forward mode and second derivatives exist with "dense" only; JAX refuses them with the others.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import dot_product_attention, masks
        >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 5, 4, 8))  # B=2, T=5, H=4, D=8
        >>> dot_product_attention(query, key, value, masks.Causal()).shape
        (2, 5, 4, 8)

    References:
        Vaswani et al. 2017, "Attention Is All You Need", section 3.2; Ainslie et al. 2023, "GQA".
    """
    call = check_call(query, key, value, mask, scale, bias, dropout_rate, dropout_key)
    return run_call(call, return_weights, implementation)


def explain_implementation(
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
    implementation: Implementation | None = None,
) -> str:
    """Say which implementation `dot_product_attention` would run with these arguments, and why not the others.

    Args:
        query: this and the others as in `dot_product_attention`; only shapes and types are looked at.
        key: as there.
        value: as there.
        mask: as there.
        scale: as there.
        bias: as there.
        dropout_rate: as there.
        dropout_key: as there.
        return_weights: as there.
        implementation: as there.

    Returns:
        One line for each implementation, the one that runs first.

    Raises:
        TypeError: as there.
        ValueError: as there.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import explain_implementation, masks
        >>> heads = jnp.ones((1, 2048, 8, 64))
        >>> print(explain_implementation(heads, heads, heads, masks.Causal()).splitlines()[0])
        blockwise runs: its memory is linear in the tokens, and it measured fastest at this size
    """
    call = check_call(query, key, value, mask, scale, bias, dropout_rate, dropout_key)
    chosen, reasons = _choose(call, return_weights, implementation)
    others = (f"{name} does not: {why}" for name, why in reasons.items() if name != chosen)
    return "\n".join([f"{chosen} runs: {reasons[chosen]}", *others])


class Call(NamedTuple):
    """Arguments that have been checked; the mask has its heads axis."""

    query: Array
    key: Array
    value: Array
    mask: Mask | None
    scale: Any
    bias: Array | None
    dropout_rate: float
    dropout_key: Array | None
    dropout_shared: bool
    precision: Any


def check_call(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    scale: Any = None,
    bias: Any = None,
    dropout_rate: float = 0.0,
    dropout_key: Any = None,
    *,
    dropout_shared: bool = False,
    precision: Any = None,
) -> Call:
    """Check the arguments of `dot_product_attention`, and two that other people's layers have besides.

    `dropout_shared` drops the same cells in every head and example; `precision` is that of the matrix products.
    """
    query, key, value = as_floating("query", query), as_floating("key", key), as_floating("value", value)
    _check_shapes(query, key, value)
    check_equal_dtypes(query=query, key=key, value=value)
    rate = check_rate(dropout_rate)
    if scale is not None and jnp.ndim(scale):
        raise ValueError(
            f"scale has shape {jnp.shape(scale)}, but is one number for all heads: write query * scale, shaped "
            "(H, 1) for one number a head, and scale=1.0"
        )
    *batch, T, H, D = query.shape
    S = key.shape[-3]
    if bias is not None:
        bias = _check_bias(bias, (*batch, H, T, S), wide_type(query.dtype))
    if mask is not None:
        mask = as_mask(mask).with_heads()
        _check_mask(mask, (*batch, H, T, S))
    return Call(
        query,
        key,
        value,
        mask,
        D**-0.5 if scale is None else scale,
        bias,
        rate,
        check_key("dropout_key", dropout_key) if rate > 0 else None,
        dropout_shared,
        None if precision is None else jax.lax.Precision(precision),
    )


def run_call(call: Call, return_weights: bool = False, implementation: Implementation | None = None) -> Any:
    """Choose an implementation and compute the context, or `(context, weights)`."""
    chosen, _ = _choose(call, return_weights, implementation)
    if chosen == "cudnn":
        return cudnn_attention(call.query, call.key, call.value, call.mask, call.scale)
    if chosen == "blockwise":
        return blockwise_attention(*call)
    context, weights = _dense_attention(call)
    return (context, weights) if return_weights else context


def _choose(call: Call, return_weights: bool, implementation: str | None) -> tuple[str, dict[str, str]]:
    """Return the name of what runs, and for each implementation why it runs or does not."""
    platform = jax.default_backend()
    *batch, T, H, _ = call.query.shape
    S = call.key.shape[-3]
    cells = math.prod((*batch, H, T, S))
    against = {
        "dense": f"would store {cells} weights, {4 * cells / 2**20:.0f} MB in float32",
        "blockwise": "",
        "cudnn": why_not_cudnn(*call[:4], call.bias, call.dropout_rate, platform),
    }
    if return_weights:
        unstored = "does not store the weights that return_weights asks for"
        against |= {"dense": "", "blockwise": unstored, "cudnn": unstored}
    elif T * S <= SMALL_HEAD or cells <= SMALL_CALL:
        against["dense"] = ""
        against["blockwise"] = f"does not pay for {T} × {S} scores a head, {cells} in all"

    if implementation is None:
        chosen = next(name for name in ("cudnn", "dense", "blockwise") if not against[name])
        why = {
            "dense": "it alone returns the weights"
            if return_weights
            else f"{T} × {S} scores a head, {cells} in all, are few",
            "blockwise": "its memory is linear in the tokens, and it measured fastest at this size",
            "cudnn": "NVIDIA's kernel computes this",
        }[chosen]
        return chosen, against | {chosen: why}
    if implementation not in against:
        raise ValueError(
            f"implementation={implementation!r} is not known: write 'dense', 'blockwise' or 'cudnn', "
            "or None to have one chosen"
        )
    if implementation == "cudnn" and against["cudnn"]:
        raise ValueError(f"implementation='cudnn' {against['cudnn']}: write implementation=None to have one chosen")
    if implementation == "blockwise" and return_weights:
        return "dense", against | {"dense": "it alone returns the weights"}
    others = dict.fromkeys(against, f"{implementation} was asked for")
    return implementation, others | {implementation: "it was asked for"}


def _dense_attention(call: Call) -> tuple[Array, Array]:
    """The steps of `functional.py` in order, for all heads: the context, and the weights before dropout."""
    *batch, T, H, D = call.query.shape
    S, K = call.key.shape[-3:-1]
    # (..., T, H, D) -> (..., K, H / K, T, D), and one of key's and value's heads for each group
    query = jnp.moveaxis(call.query.reshape(*batch, T, K, H // K, D), -4, -2)
    key, value = (jnp.moveaxis(array, -3, -2)[..., :, None, :, :] for array in (call.key, call.value))
    with products_of(call.precision):
        # (..., K, H / K, T, S) -> (..., H, T, S)
        scores = attention_scores(query, key).reshape(*batch, H, T, S)
        scores = scores * jnp.asarray(call.scale, scores.dtype)
        if call.bias is not None:
            scores = scores + call.bias.astype(scores.dtype)
        weights = kept = attention_weights(scores, call.mask)
        if call.dropout_shared and call.dropout_key is not None:
            factors = dropout(jnp.ones((T, S), weights.dtype), call.dropout_rate, call.dropout_key)
            kept = weights * jnp.broadcast_to(factors, weights.shape)
        elif call.dropout_key is not None:
            kept = dropout(weights, call.dropout_rate, call.dropout_key)
        # (..., K, H / K, T, D_v) -> (..., T, H, D_v)
        context = context_vectors(kept.reshape(*batch, K, H // K, T, S), value)
    return jnp.moveaxis(context, -2, -4).reshape(*batch, T, H, value.shape[-1]), weights


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


def _check_bias(bias: Any, scores: tuple[int, ...], dtype: Any) -> Array:
    bias = as_floating("bias", bias).astype(dtype)
    if not _broadcasts(bias.shape, scores):
        raise ValueError(
            f"bias has shape {bias.shape}, which does not broadcast to the scores (..., H, T, S) = {scores}"
        )
    return bias.reshape((1,) * (len(scores) - bias.ndim) + bias.shape)


def _check_mask(mask: Mask, scores: tuple[int, ...]) -> None:
    shape = jax.eval_shape(lambda: mask.array(*scores[-2:])).shape
    if not _broadcasts(shape, scores):
        raise ValueError(
            f"mask has shape {shape}, which does not broadcast to the scores (..., H, T, S) = {scores}: "
            "write mask[:, None] to put a heads axis into a mask of (batch, T, S)"
        )


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    return len(shape) <= len(target) and all(m in (1, n) for m, n in zip(shape[::-1], target[::-1], strict=False))
