"""The KV cache: keys and values of earlier tokens, so that a new token costs one row of attention and not all.

`Cache` holds all tokens, `RollingCache` those of a window. Beam search gathers a cache with `reorder_cache`, and
`check_room` says before a compiled call whether tokens fit.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int, PyTree

from jaxattn.checks import as_integers, as_size, known
from jaxattn.masks import Segments


class Cache(NamedTuple):
    """Keys and values `(..., L, K, D)`, of which the first `length` of each example are filled.

    A length of L + 1 says that tokens are missing: there was no room for them, or nobody knows how many there were.
    """

    key: Float[Array, "*batch L K D"]
    value: Float[Array, "*batch L K D_v"]
    length: Int[Array, "*batch"]

    @classmethod
    def empty(cls, key: Array, value: Array, room: int) -> "Cache":
        """Return an empty cache for `room` tokens with the heads, widths and types of keys and values."""
        if as_size("cache_length", room) < 1:
            raise ValueError(f"cache_length={room} must be at least 1: write cache_length=1024")
        return cls(_zeros(key, room), _zeros(value, room), jnp.zeros(key.shape[:-3], jnp.int32))

    @property
    def is_whole(self) -> Bool[Array, "*batch"]:
        """Whether all tokens of an example are in the cache."""
        return self.length <= self.key.shape[-3]

    def append(self, key: Array, value: Array, real: Int[Array, "*batch"] | None = None) -> "Cache":
        """Append T tokens to each example, of which the first `real` `(...)` are real; padding is not written.

        An example without room for them is no longer whole, because a compiled program cannot raise.
        """
        T, room = key.shape[-3], self.key.shape[-3]
        if room < T and real is None:
            raise ValueError(
                f"x has {T} tokens, but the cache has room for cache_length={room}: write a larger cache_length"
            )
        added = jnp.full_like(self.length, T) if real is None else real
        fits = (added >= 0) & (added <= T) & (self.length + added <= room)
        write = _write if real is None else _write_real
        for _ in range(self.length.ndim):
            write = jax.vmap(write)
        # Padding beyond the room is cut off, so that what is written is never longer than the cache.
        keys, values = (
            write(old, new[..., :room, :, :], self.length, jnp.where(fits, added, 0))
            for old, new in ((self.key, key), (self.value, value))
        )
        return Cache(keys, values, jnp.where(fits, self.length + added, room + 1))


class RollingCache(NamedTuple):
    """Keys and values `(..., R, K, D)` of the last R tokens of each example, the latest at the end.

    `num_tokens` is how many tokens there have been, and -1 where nobody knows how many were real.
    """

    recent_key: Float[Array, "*batch R K D"]
    recent_value: Float[Array, "*batch R K D_v"]
    num_tokens: Int[Array, "*batch"]

    @classmethod
    def empty(cls, key: Array, value: Array, room: int) -> "RollingCache":
        """Return an empty cache of `room` tokens with the heads, widths and types of keys and values."""
        return cls(_zeros(key, room), _zeros(value, room), jnp.zeros(key.shape[:-3], jnp.int32))

    @property
    def length(self) -> Int[Array, "*batch"]:
        """The position of the next token."""
        return self.num_tokens

    @property
    def is_whole(self) -> Bool[Array, "*batch"]:
        """Whether it is known which tokens of an example are in the cache."""
        return self.num_tokens >= 0

    def joined(self, key: Array, value: Array, real: Array | None) -> tuple[Array, Array, Segments]:
        """Return keys and values `(..., R + T, K, D)`, the new ones behind the old, and a mask of those that are real.

        Query t stands at R + t among them.
        """
        *batch, T, _, _ = key.shape
        R, rank = self.recent_key.shape[-3], len(batch)
        places = jnp.arange(R + T, dtype=jnp.int32).reshape((1,) * rank + (-1,))
        is_real = places >= (R - self.num_tokens)[..., None]
        if real is not None:
            is_real = is_real & (places < (R + real)[..., None])
            # Padding may be any number, and NaN times a weight of 0 is NaN.
            is_new = is_real[..., R:, None, None]
            key, value = (jnp.where(is_new, new, jnp.zeros((), new.dtype)) for new in (key, value))
        keys, values = (jnp.concatenate(pair, -3) for pair in ((self.recent_key, key), (self.recent_value, value)))
        return keys, values, Segments(jnp.zeros((*batch, T), jnp.int32), is_real.astype(jnp.int32) - 1)

    def advanced(self, keys: Array, values: Array, T: int, real: Array | None) -> "RollingCache":
        """Return the cache after T tokens, of which the first `real` are real, from what `joined` returned."""
        R = self.recent_key.shape[-3]
        if real is None:
            added, is_known = jnp.full_like(self.num_tokens, T), self.num_tokens >= 0
            latest = keys[..., T:, :, :], values[..., T:, :, :]
        else:
            is_known = (self.num_tokens >= 0) & (real >= 0) & (real <= T)
            added = jnp.where(is_known, real, 0)
            cut = lambda array, start: lax.dynamic_slice_in_dim(array, start, R)  # noqa: E731
            for _ in range(self.num_tokens.ndim):
                cut = jax.vmap(cut)
            latest = cut(keys, added), cut(values, added)
        return RollingCache(*latest, jnp.where(is_known, self.num_tokens + added, -1))


def reorder_cache(cache: PyTree, indices: Int[Array, " examples"], axis: int = 0) -> PyTree:
    """Gather a cache by example: example i of the result continues example `indices[i]`, as beam search needs it.

    Args:
        cache: the collection "cache" of a Linen model, the `nnx.Cache` state of an NNX model, or any tree of arrays
            whose axis `axis` is the batch.
        indices: an integer for each example of the result; there may be more or fewer than before.
        axis: the batch axis, 1 for layers stacked by `nn.scan`.

    Raises:
        ValueError: an index is outside the batch, or the axis is counted from the end.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import reorder_cache
        >>> reorder_cache({"length": jnp.array([3, 5])}, jnp.array([1, 1, 0]))["length"].tolist()
        [5, 5, 3]
    """
    indices = as_integers("indices", indices)
    if as_size("axis", axis) < 0:
        raise ValueError(f"axis={axis} is another one in each array of a cache: write the batch axis, counted from 0")
    numbers = known(indices)
    for leaf in jax.tree.leaves(cache):
        size = leaf.shape[axis] if leaf.ndim > axis else 0
        if indices.ndim != 1 or size == 0 or (numbers is not None and ((numbers < 0) | (numbers >= size)).any()):
            raise ValueError(
                f"indices are {indices if numbers is None else numbers.tolist()}, but must be one axis of numbers from "
                f"0 to {size - 1}, the examples on axis {axis} of a cache with an array of shape {leaf.shape}"
            )
    return jax.tree.map(lambda leaf: jnp.take(leaf, indices, axis=axis), cache)


def check_room(cache: Any, num_tokens: int) -> None:
    """Check, before a compiled call, that a cache has room for more tokens in every example.

    Beyond its room a cache gives NaN, because a compiled program cannot raise. This reads the lengths, so it is for
    caches outside `jit`; traced ones pass, and so do rolling ones.

    Args:
        cache: the collection "cache" of a Linen model, or the state of an NNX model as a pure dictionary.
        num_tokens: how many tokens are to be added to each example.

    Raises:
        TypeError: `cache` is no dictionary.
        ValueError: there is no room; the message names the layer and the numbers.
    """
    if not isinstance(cache, Mapping):
        raise TypeError(
            f"cache is a {type(cache).__name__}, but must be a dictionary: write variables['cache'] in Linen, "
            "nnx.to_pure_dict(nnx.state(model, nnx.Cache)) in NNX"
        )
    _check_room(cache, num_tokens, "cache")


def _check_room(cache: Any, num_tokens: int, path: str) -> None:
    if not isinstance(cache, Mapping):
        return
    first = next((cache[name] for name in ("key", "latent") if not isinstance(cache.get(name, {}), Mapping)), None)
    if "length" not in cache or first is None:
        for name, part in cache.items():
            _check_room(part, num_tokens, f"{path}/{name}")
        return
    lengths, room = known(cache["length"]), first.shape[-3]
    if lengths is None:
        return
    longest = int(np.max(lengths, initial=0))
    if longest + num_tokens > room:
        raise ValueError(
            f"{path} holds {min(longest, room)} of {room} tokens, so {num_tokens} more do not fit: write "
            f"cache_length={longest + num_tokens}, or fewer tokens"
        )


def check_examples(name: str, batch: tuple[int, ...], held: tuple[int, ...]) -> None:
    """Check that vectors or tokens with these batch axes are those of the examples in a cache."""
    if batch != held:
        raise ValueError(
            f"{name} has the batch {batch}, but the cache holds the examples of the batch {held}: continue all of "
            "them, gather others with reorder_cache, or begin with an empty cache"
        )


def check_continues(cache: Cache | RollingCache, key: Array, value: Array) -> None:
    """Check that new keys and values `(..., T, K, D)` belong behind those in a cache."""
    for held, came in zip(cache[:2], (key, value), strict=True):
        check_examples("x", came.shape[:-3], held.shape[:-3])
        if held.shape[-2:] != came.shape[-2:]:
            raise ValueError(
                f"the cache holds heads of shape {held.shape[-2:]}, but this layer has {came.shape[-2:]}: it is of "
                "another layer, so begin with an empty cache"
            )
        if held.dtype != came.dtype:
            raise TypeError(
                f"x has dtype {came.dtype}, but the cache holds {held.dtype}: write x.astype(jnp.{held.dtype}), or "
                "begin with an empty cache"
            )


def _zeros(heads: Array, room: int) -> Array:
    """Return zeros for `room` tokens, as keys or values `(..., T, K, D)`."""
    *batch, _, K, D = heads.shape
    return jnp.zeros((*batch, room, K, D), heads.dtype)


def _write(old: Array, new: Array, length: Array, added: Array) -> Array:
    """Write new tokens `(T, K, D)` behind the first `length` of the old ones `(L, K, D)`, if there is room."""
    zero = jnp.zeros((), jnp.int32)
    return lax.dynamic_update_slice(old, new, (length, zero, zero))


def _write_real(old: Array, new: Array, length: Array, added: Array) -> Array:
    """Write the first `added` of the new tokens alone."""
    T, zero = len(new), jnp.zeros((), jnp.int32)
    # Where the T tokens would reach beyond the end, they are written over the last T, and begin `late` tokens later.
    start = jnp.minimum(length, len(old) - T)
    late = length - start
    index = jnp.arange(T, dtype=jnp.int32)
    is_new = (index >= late) & (index < late + added)
    kept = lax.dynamic_slice(old, (start, zero, zero), new.shape)
    merged = jnp.where(is_new[:, None, None], jnp.roll(new, late, axis=0), kept)
    return lax.dynamic_update_slice(old, merged, (start, zero, zero))
