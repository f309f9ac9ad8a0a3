"""The KV cache: keys and values of earlier tokens, so that a new token costs one row of attention and not all."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int


class Cache(NamedTuple):
    """Keys and values `(..., L, K, D)`, of which the first `length` of each example are filled."""

    key: Float[Array, "*batch L K D"]
    value: Float[Array, "*batch L K D"]
    length: Int[Array, "*batch"]

    @classmethod
    def empty(cls, key: Array, room: int) -> "Cache":
        """Return an empty cache for `room` tokens with the heads, width and type of `key` `(..., T, K, D)`."""
        *batch, _, K, D = key.shape
        zeros = jnp.zeros((*batch, room, K, D), key.dtype)
        return cls(zeros, zeros, jnp.zeros(batch, jnp.int32))

    def append(self, key: Array, value: Array, real: Array | None = None) -> "Cache":
        """Append T tokens to each example, of which the first `real` `(...)` count; later ones overwrite the others.

        Where there is no room for T more, NaN is written, because a compiled program cannot raise.
        """
        T, room = key.shape[-3], self.key.shape[-3]
        if room < T:
            raise ValueError(
                f"x has {T} tokens, but the cache has room for cache_length={room}: write a larger cache_length"
            )
        fits = (self.length + T <= room)[..., None, None, None]

        def write(old: Array, new: Array, start: Array) -> Array:
            return lax.dynamic_update_slice(old, new, (start, 0, 0))

        for _ in range(self.length.ndim):
            write = jax.vmap(write)
        keys = write(self.key, jnp.where(fits, key, jnp.nan), self.length)
        values = write(self.value, jnp.where(fits, value, jnp.nan), self.length)
        added = jnp.asarray(T, jnp.int32) if real is None else jnp.asarray(real, jnp.int32)
        return Cache(keys, values, self.length + added)
