"""What the arguments must be: every message names the argument, what came, what is allowed and what to write."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def as_floating(name: str, array: Any) -> Array:
    """Return `array` as a JAX array, or raise a TypeError where its type is not a floating-point one."""
    array = jnp.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"{name} has dtype {array.dtype}, but attention works on floating-point vectors: "
            f"write {name}.astype(jnp.float32), or, if these are token ids, look them up in an embedding first"
        )
    return array


def check_rank(name: str, array: Array, least: int, axes: str) -> None:
    """Raise a ValueError unless `array` has the axes that `axes` spells out (`least` of them, and any before)."""
    if array.ndim < least:
        raise ValueError(
            f"{name} has shape {array.shape}, but needs at least {least} axes, (..., {axes}): "
            f"write {name}[None] to add one in front"
        )


def as_tokens(name: str, x: Any) -> Array:
    """Return token vectors `(..., T, d_in)` as a JAX array, or raise where they are not floating point or too flat."""
    x = as_floating(name, x)
    check_rank(name, x, 2, "T, d_in")
    return x


def check_rate(rate: float) -> float:
    """Return the dropout rate as a float, or raise a ValueError where it lies outside [0, 1)."""
    rate = float(rate)
    if not 0.0 <= rate < 1.0:
        raise ValueError(
            f"dropout_rate={rate} is outside [0, 1): it is the share of weights that are dropped, and survivors grow "
            "by 1 / (1 - rate), which a rate of 1 divides by zero; write dropout_rate=0.1 to drop a tenth"
        )
    return rate


def check_key(name: str, key: Any) -> Array:
    """Return one PRNG key as a JAX array, or raise where `key` is missing, a seed, or a whole batch of keys."""
    if key is None:
        raise ValueError(f"{name} is missing, but dropout is random: write {name}=jax.random.key(0)")
    if not isinstance(key, Array) or not (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.dtype == jnp.uint32):
        raise TypeError(f"{name} is {key!r}, but must be a PRNG key: write {name}=jax.random.key(0)")
    if key.ndim != (0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1):
        raise ValueError(
            f"{name} has shape {key.shape}, but one call takes one key: "
            f"write jax.vmap over the batch, with one key of jax.random.split(key, batch) for each example"
        )
    return key


def check_equal_dtypes(**arrays: Array) -> None:
    """Raise a TypeError unless all the named arrays have one type, so that none is widened or narrowed unseen."""
    if len({array.dtype for array in arrays.values()}) > 1:
        came = ", ".join(f"{name} {array.dtype}" for name, array in arrays.items())
        first, *others = arrays
        raise TypeError(
            f"the types differ ({came}): write {others[-1]}.astype({first}.dtype), or cast whichever is off"
        )


def as_boolean(name: str, mask: Any) -> Array:
    """Return `mask` as a JAX array, or raise a TypeError where it is not boolean."""
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(
            f"{name} has dtype {mask.dtype}, but must be boolean with True = may attend: "
            f"write {name}.astype(bool) for ones and zeros, or {name} == 0 for an additive mask of 0 and -inf"
        )
    return mask
