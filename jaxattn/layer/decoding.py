"""Decoding: keys and values of earlier calls, and the mask that keeps it causal."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int

from jaxattn.cache import Cache, RollingCache, check_continues
from jaxattn.layer.call import check_rolling
from jaxattn.masks import Causal, Lengths, Mask, SlidingWindow, combine


class Storage(NamedTuple):
    """How a face keeps arrays between calls: the collection "cache" in Linen, `nnx.Cache` in NNX.

    `read(*names)` returns the arrays of these names, or None if there are none yet; `write(**arrays)` keeps arrays.
    `is_empty` says that the module is being initialized, so that nothing may be added.
    """

    read: Callable[..., tuple[Array, ...] | None]
    write: Callable[..., None]
    is_empty: bool = False


class Earlier(NamedTuple):
    """What decoding adds to a call."""

    key: Array  # (..., S, K, D), of earlier tokens and of these
    value: Array  # (..., S, K, D_v)
    mask: Mask
    offset: int | Int[Array, "*batch"]  # the position of the first query among the keys
    is_whole: Bool[Array, "*batch"]  # whether no token is missing


def stored(layer: Any, storage: Storage, key: Array, value: Array) -> Cache | RollingCache:
    """Return the cache, or an empty one."""
    kind: Any = RollingCache if layer.rolling_cache else Cache
    arrays = storage.read(*kind._fields)
    if arrays is None:
        return empty_cache(layer, key, value)
    cache = kind(*arrays)
    check_continues(cache, key, value)
    return cache


def empty_cache(layer: Any, key: Array, value: Array) -> Cache | RollingCache:
    """Return an empty cache for keys and values of these heads, widths and types."""
    if layer.rolling_cache:
        check_rolling(layer)
        return RollingCache.empty(key, value, layer.mask.size - 1)
    if layer.cache_length is None:
        raise ValueError("a KV cache needs cache_length=... in the layer, the largest number of tokens in it")
    return Cache.empty(key, value, layer.cache_length)


def extend(
    layer: Any, storage: Storage, cache: Cache | RollingCache, key: Array, value: Array, mask: Any, lengths: Any
) -> Earlier:
    """Append keys and values of T tokens to those of earlier calls, and return what these tokens attend to."""
    T = key.shape[-3]
    if isinstance(cache, RollingCache):
        keys, values, filled = cache.joined(key, value, lengths)
        extended = cache if storage.is_empty else cache.advanced(keys, values, T, lengths)
        room = keys.shape[-3] - T
        storage.write(**extended._asdict())
        return Earlier(
            key=keys,
            value=values,
            mask=SlidingWindow(layer.mask.size, room) & filled,
            offset=room,
            is_whole=extended.is_whole,
        )
    grown = cache if storage.is_empty else cache.append(key, value, lengths)
    storage.write(**grown._asdict())
    combined = decoding_mask(layer.mask, mask, cache.length, T, None if lengths is None else grown.length)
    return Earlier(key=grown.key, value=grown.value, mask=combined, offset=cache.length, is_whole=grown.is_whole)


def decoding_mask(own: Mask | None, mask: Any, cached: Array, T: int, filled: Array | None) -> Mask:
    """Mask the keys after each token, those that are not filled, and what the masks of layer and call mask."""
    # For one token, Lengths says the same as Causal, and more kernels support it.
    causal: Mask = Lengths(cached + 1) if T == 1 else Causal(cached)
    if T > 1 and filled is not None:
        causal = causal & Lengths(filled)
    is_implied = isinstance(own, Causal) and isinstance(own.offset, int) and own.offset >= 0
    combined = combine(None if is_implied else own, mask)
    return causal if combined is None else causal & combined.shifted(cached)


def kept_context(storage: Storage, heads: tuple[Array, Array] | None) -> tuple[Array, Array]:
    """Keep the keys and values of a context, or return those that an earlier call has kept."""
    if heads is not None:
        storage.write(context_key=heads[0], context_value=heads[1])
        return heads
    kept = storage.read("context_key", "context_value")
    if kept is None:
        raise ValueError(
            "keep_context=True without a context attends to the one of an earlier call, but the cache has none: pass "
            "context=... in the first call, and the cache that it returns in the next"
        )
    return kept[0], kept[1]


def masked_missing(output: Array, is_whole: Array | None) -> Array:
    """Return NaN for examples of which tokens are missing in the cache."""
    if is_whole is None:
        return output
    return jnp.where(is_whole.reshape(is_whole.shape + (1,) * (output.ndim - is_whole.ndim)), output, jnp.nan)
