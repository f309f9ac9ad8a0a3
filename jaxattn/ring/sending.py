"""Exchanges between devices, with derivatives, in an array's own type.

XLA for CPUs computes bfloat16 in float32, exchanges included, which would send twice the bytes. So narrow numbers are
sent as their bits.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

Pairs = tuple[tuple[int, int], ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def permute(array: Array, axis: str, pairs: Pairs) -> Array:
    """Send the array of each device to another, by pairs (from, to); devices that get none have zeros."""
    return _as_bits(lambda bits: lax.ppermute(bits, axis, pairs), array)


def _permute_back(axis: str, pairs: Pairs, _: None, gradient: Array) -> tuple[Array]:
    return (permute(gradient, axis, tuple((to, start) for start, to in pairs)),)


permute.defvjp(lambda array, axis, pairs: (permute(array, axis, pairs), None), _permute_back)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def swap(array: Array, axis: str, split: int, concatenate: int) -> Array:
    """Split one array axis over the devices, and concatenate what they send along another."""
    exchange = functools.partial(lax.all_to_all, split_axis=split, concat_axis=concatenate, tiled=True)
    return _as_bits(lambda bits: exchange(bits, axis), array)


def _swap_back(axis: str, split: int, concatenate: int, _: None, gradient: Array) -> tuple[Array]:
    return (swap(gradient, axis, concatenate, split),)


swap.defvjp(lambda array, axis, split, concatenate: (swap(array, axis, split, concatenate), None), _swap_back)


def gather(array: Array, axis: str, concatenate: int) -> Array:
    """Concatenate the arrays of all devices along an array axis; without derivatives."""
    return _as_bits(lambda bits: lax.all_gather(bits, axis, axis=concatenate, tiled=True), array)


def _as_bits(exchange: Callable[[Array], Array], array: Array) -> Array:
    if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize != 2:
        return exchange(array)
    return lax.bitcast_convert_type(exchange(lax.bitcast_convert_type(array, jnp.uint16)), array.dtype)
