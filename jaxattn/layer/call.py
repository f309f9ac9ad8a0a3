"""The arguments of a layer's call, checked."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxattn.checks import as_tokens, known
from jaxattn.layer.heads import rotary_of
from jaxattn.masks import And, Causal, Chunked, Or, SlidingWindow


class Call(NamedTuple):
    """The arguments of a layer's call besides the vectors, as the layers document them."""

    dropout_key: Array | None
    return_weights: bool
    context: Any
    mask: Any
    positions: Any
    decode: bool
    lengths: Any
    keep_context: bool = False


def checked(layer: Any, x: Any, call: Call) -> tuple[Array, Call]:
    """Check the arguments of a call against each other and the layer's fields; return them as JAX arrays."""
    x = as_tokens("x", x)
    x = x if layer.dtype is None else x.astype(layer.dtype)
    lengths = None if call.lengths is None else checked_lengths(call.lengths, x.shape[:-1], call.decode)
    if call.positions is not None and rotary_of(layer) is None:
        raise ValueError(
            "positions are used by rotary_base alone: write rotary_base=10_000.0 or rotary=Rotary(...) in the layer"
        )
    is_cross = call.context is not None or call.keep_context
    if getattr(layer, "rolling_cache", False):
        check_rolling(layer)
    if call.decode:
        _check_decode(layer, call, is_cross)
    if is_cross:
        _check_cross(layer)
    context = None if call.context is None else as_tokens("context", call.context).astype(x.dtype)
    return x, call._replace(context=context, lengths=lengths)


def _check_decode(layer: Any, call: Call, is_cross: bool) -> None:
    if is_cross:
        raise ValueError(
            "decode=True and context exclude each other: a context is complete, so leave decode out, and write "
            "keep_context=True to compute its keys once"
        )
    if getattr(layer, "rolling_cache", False):
        _check_mask_of_rolling(call.mask)
    elif layer.cache_length is None:
        rolling = ", or rolling_cache=True with mask=SlidingWindow(size)" if hasattr(layer, "rolling_cache") else ""
        raise ValueError(
            f"decode=True needs cache_length=... in the layer, the largest number of tokens in the cache{rolling}"
        )


def check_rolling(layer: Any) -> None:
    """Check that a window says what a rolling cache holds."""
    mask = layer.mask
    if not isinstance(mask, SlidingWindow) or not isinstance(mask.offset, int) or mask.offset:
        raise ValueError(
            f"rolling_cache=True holds the tokens of a window alone, but mask is {mask}, which may need others: write "
            "mask=SlidingWindow(size), or cache_length=... in place of rolling_cache"
        )
    if mask.right:
        raise ValueError(
            f"rolling_cache=True holds earlier tokens, but mask is {mask}, which attends to later ones too: write "
            f"mask=SlidingWindow({mask.size})"
        )
    if layer.cache_length is not None:
        raise ValueError(
            f"rolling_cache=True holds the window of {mask.size} tokens, and cache_length={layer.cache_length} says "
            "otherwise: leave cache_length out"
        )


def _check_mask_of_rolling(mask: Any) -> None:
    if mask is not None:
        raise ValueError(
            "mask names keys by their position, and rolling_cache=True drops old ones: write cache_length=... in place "
            "of rolling_cache, or lengths=... for padding"
        )


def _check_cross(layer: Any) -> None:
    if _is_by_position(layer.mask) or layer.position_bias is not None or rotary_of(layer) is not None:
        raise ValueError(
            "context is another sequence, in which the positions of x mean nothing: write mask=None, rotary_base=None "
            "and position_bias=None in the layer for cross-attention"
        )


def _is_by_position(mask: Any) -> bool:
    """Return whether a mask compares the positions of queries and keys."""
    if isinstance(mask, And | Or):
        return _is_by_position(mask.first) or _is_by_position(mask.second)
    return isinstance(mask, Causal | SlidingWindow | Chunked)


def check_ring(call: Call, collects_steps: bool) -> None:
    """Check that a call has nothing that a ring of devices does not support."""
    if call.return_weights or call.decode or call.keep_context or collects_steps:
        raise ValueError(
            "ring shards the tokens over devices, which hold neither the weights nor a cache: write ring=None for "
            "return_weights, decode and keep_context"
        )


def checked_lengths(lengths: Any, shape: tuple[int, ...], decode: bool) -> Array:
    """Return how many tokens of each example `(..., T)` are real, as int32; traced lengths are checked by the cache."""
    if not decode:
        raise ValueError("lengths belongs to decode=True: write mask=masks.Lengths(lengths) to mask padding")
    lengths, (*batch, T) = jnp.asarray(lengths), shape
    if lengths.shape != tuple(batch) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"lengths has shape {lengths.shape} and dtype {lengths.dtype}, but must hold an integer for each example, "
            f"{tuple(batch)}"
        )
    numbers = known(lengths)
    if numbers is not None and not ((numbers >= 0) & (numbers <= T)).all():
        raise ValueError(
            f"lengths are {lengths.tolist()}, but there are {T} tokens, of which from 0 to {T} are real: write "
            f"jnp.clip(lengths, 0, {T})"
        )
    return lengths.astype(jnp.int32)
