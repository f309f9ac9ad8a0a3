"""The random bits that every kernel drops by: the same key drops the same entries, at any block size.

An entry's bits are a hash of its row's bits and its column's bits. So the memory is linear in the tokens, and a kernel
that holds one tile of the weights gets the tile's bits from its rows and columns alone.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, UInt32

from jaxattn.checks import check_key


def draw_bits(key: Array, shape: tuple[int, ...]) -> tuple[UInt32[Array, "*rows 1"], UInt32[Array, "*ones S"]]:
    """Draw the bits of rows `(*shape[:-1], 1)` and of columns `(1, ..., 1, shape[-1])`."""
    row_key, column_key = jax.random.split(check_key("key", key))
    row_bits = jax.random.bits(row_key, (*shape[:-1], 1), jnp.uint32)
    column_bits = jax.random.bits(column_key, shape[-1:], jnp.uint32)
    return row_bits, column_bits.reshape((1,) * (len(shape) - 1) + shape[-1:])


def keep_mask(
    row_bits: UInt32[Array, "*#shape"], column_bits: UInt32[Array, "*#shape"], rate: float
) -> Bool[Array, "*shape"]:
    """Return which entries dropout keeps, each with probability 1 - rate."""
    return entry_bits(row_bits, column_bits) >= jnp.uint32(drop_threshold(rate))


def entry_bits(row_bits: UInt32[Array, "*#shape"], column_bits: UInt32[Array, "*#shape"]) -> UInt32[Array, "*shape"]:
    """Hash the bits of an entry's row and column.

    The hash is a 32-bit finalizer: each input bit flips each output bit about half of the time (xor-shifts and odd
    multipliers after C. Wellons, "Prospecting for Hash Functions", 2018).
    """
    bits = row_bits ^ column_bits
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def drop_threshold(rate: float) -> int:
    """Return the number below which an entry's bits drop it."""
    return min(round(rate * 2**32), 2**32 - 1)


def drop(
    weights: Float[Array, "*shape"],
    rate: float,
    row_bits: UInt32[Array, "..."] | None,
    column_bits: UInt32[Array, "..."] | None,
) -> Float[Array, "*shape"]:
    """Zero the entries that are not kept, and scale those that are by 1 / (1 - rate); without bits, drop nothing."""
    if row_bits is None or column_bits is None:
        return weights
    factor = jnp.asarray(1 / (1 - rate), weights.dtype)
    return jnp.where(keep_mask(row_bits, column_bits, rate), weights * factor, 0)
