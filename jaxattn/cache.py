"""The KV cache: keys and values of earlier tokens, so that a new token costs one row of attention and not all."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int


class Cache(NamedTuple):
    """Keys and values `(..., L, K, D)`, of which the first `length` of each example are filled.

    A length of L + 1 says that tokens are missing: there was no room for them, or nobody knows how many there were.
    """

    key: Float[Array, "*batch L K D"]
    value: Float[Array, "*batch L K D"]
    length: Int[Array, "*batch"]

    @classmethod
    def empty(cls, key: Array, room: int) -> "Cache":
        """Return an empty cache for `room` tokens with the heads, width and type of `key` `(..., T, K, D)`."""
        *batch, _, K, D = key.shape
        zeros = jnp.zeros((*batch, room, K, D), key.dtype)
        return cls(zeros, zeros, jnp.zeros(batch, jnp.int32))

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
