"""Argument checks: every message names the argument, what came, what is allowed and what to write instead."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike


def as_array(name: str, array: Any, kind: str = "an array") -> Array:
    """Return `array` as a JAX array; the error for anything else names the argument."""
    try:
        return jnp.asarray(array)
    except jax.errors.JAXTypeError:
        raise
    except (TypeError, ValueError, OverflowError):
        came = "None" if array is None else f"{array!r}" if isinstance(array, str | type) else type(array).__name__
        raise TypeError(f"{name} is {came}, but must be {kind}") from None


def as_floating(name: str, array: Any) -> Array:
    """Return `array` as a JAX array; its type must be a floating-point one."""
    array = as_array(name, array)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"{name} has dtype {array.dtype}, but attention works on floating-point vectors: "
            f"write {name}.astype(jnp.float32), or, if these are token ids, look them up in an embedding first"
        )
    return array


def as_boolean(name: str, mask: Any) -> Array:
    """Return `mask` as a JAX array; its type must be boolean."""
    mask = as_array(name, mask, "a boolean array, or one of jaxattn.masks: write masks.Causal()")
    if mask.dtype != jnp.bool_:
        raise TypeError(
            f"{name} has dtype {mask.dtype}, but must be boolean with True = may attend: "
            f"write {name}.astype(bool) for ones and zeros, or {name} == 0 for an additive mask of 0 and -inf"
        )
    return mask


def as_integers(name: str, array: Any) -> Array:
    """Return `array` as a JAX array; its type must be an integer one."""
    array = as_array(name, array)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} has dtype {array.dtype}, but must hold integers: write {name}.astype(jnp.int32)")
    return array


def known(array: Any) -> np.ndarray | None:
    """Return an array in NumPy, to check its numbers; None where they are traced, or lie on other hosts."""
    if isinstance(array, jax.core.Tracer) or (isinstance(array, Array) and not array.is_fully_addressable):
        return None
    return np.asarray(array)


def as_tokens(name: str, x: Any) -> Array:
    """Return token vectors `(..., T, d_in)` as a JAX array of floating-point numbers."""
    x = as_floating(name, x)
    check_rank(name, x, 2, "T, d_in")
    return x


def check_rank(name: str, array: Array, least: int, axes: str) -> None:
    """Check that `array` has the `least` last axes that `axes` names; any number may stand before them."""
    if array.ndim < least:
        raise ValueError(
            f"{name} has shape {array.shape}, but needs at least {least} axes, (..., {axes}): "
            f"write {name}[None] to add one in front"
        )


def check_leading_axes(**arrays: Array) -> None:
    """Check that two arrays agree in all axes but the last two; where one has 1, it is broadcast."""
    (first, a), (second, b) = arrays.items()
    if a.ndim != b.ndim or any(m != n and 1 not in (m, n) for m, n in zip(a.shape[:-2], b.shape[:-2], strict=True)):
        raise ValueError(
            f"{first} {a.shape} and {second} {b.shape} differ in the axes before the last two (batch, heads): "
            "give both the same leading axes, or use jax.vmap over the one that only one of them has"
        )


def check_dtypes(**arrays: Array) -> None:
    """Check that all arrays have one type, so that none is converted without notice."""
    if len({array.dtype for array in arrays.values()}) > 1:
        came = ", ".join(f"{name} {array.dtype}" for name, array in arrays.items())
        first, *others = arrays
        raise TypeError(f"the types differ ({came}): write {others[-1]}.astype({first}.dtype), or convert the others")


def as_number(name: str, number: Any) -> float:
    """Return a number of any type as Python's float; it must be known before tracing."""
    try:
        return float(number)
    except jax.errors.ConcretizationTypeError:
        raise TypeError(
            f"{name} is traced, but must be known before: make it a constant, or write "
            f"jax.jit(function, static_argnames={name!r})"
        ) from None
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {number!r}, but must be a number: write {name}=0.1") from None


def check_rate(rate: float) -> float:
    """Return the dropout rate as a float; it must lie in [0, 1)."""
    rate = as_number("dropout_rate", rate)
    if not 0.0 <= rate < 1.0:
        raise ValueError(
            f"dropout_rate={rate} is outside [0, 1): it is the share of weights that are dropped, and the others are "
            "scaled by 1 / (1 - rate), which a rate of 1 divides by zero; write dropout_rate=0.1 to drop a tenth"
        )
    return rate


def as_scale(scale: Any, dtype: DTypeLike) -> float | Array:
    """Return a scale as a float where it is a plain number, or as an array `()` of the given type."""
    if isinstance(scale, int | float | np.integer | np.floating):
        return float(scale)
    if not isinstance(scale, Array | np.ndarray | np.generic) or not (
        jnp.issubdtype(scale.dtype, jnp.integer) or jnp.issubdtype(scale.dtype, jnp.floating)
    ):
        raise TypeError(f"scale is {scale!r}, but must be a real number, or an array of one: write scale=0.125")
    if jnp.ndim(scale):
        raise ValueError(
            f"scale has shape {jnp.shape(scale)}, but is one number for all heads: multiply the query by the array, "
            "shaped (H, 1) for one number a head, and write scale=1.0"
        )
    return jnp.asarray(scale, dtype)


def check_key(name: str, key: Any) -> Array:
    """Return `key` as a JAX array; it must be one PRNG key, not a seed and not a batch of keys."""
    if key is None:
        raise ValueError(f"{name} is missing, but dropout is random: write {name}=jax.random.key(0)")
    if isinstance(key, np.ndarray) and key.dtype == np.uint32:
        key = jnp.asarray(key)  # a raw key, as a checkpoint restores it
    if not isinstance(key, Array) or not (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.dtype == jnp.uint32):
        raise TypeError(f"{name} is {key!r}, but must be a PRNG key: write {name}=jax.random.key(0)")
    if key.ndim != (0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1):
        raise ValueError(
            f"{name} has shape {key.shape}, but one call takes one key: "
            f"write jax.vmap over the batch, with one key of jax.random.split(key, batch) for each example"
        )
    if key.ndim and key.shape != jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape:
        raise ValueError(
            f"{name} has shape {key.shape}, which no raw key of this generator has: write jax.random.key(0)"
        )
    return key


def as_size(name: str, number: Any) -> int:
    """Return a whole number of any type, of NumPy's too, as Python's int.

    Raises:
        TypeError: it is no whole number.
    """
    try:
        return operator.index(number)
    except TypeError:
        raise TypeError(f"{name} is {number!r}, but must be a whole number: write {name}=4") from None


def check_num_heads(num_heads: int) -> None:
    """Check that there is at least one head."""
    as_size("num_heads", num_heads)
    if num_heads < 1:
        raise ValueError(f"num_heads={num_heads} must be at least 1: write num_heads=1 for a single head")


def features_per_head(num_heads: int, features: int) -> int:
    """Return the width of each head; the number of heads must divide `features`."""
    check_num_heads(num_heads)
    if as_size("features", features) < 1:
        raise ValueError(f"features={features} must be at least 1: it is the width of the output vectors")
    if features % num_heads:
        below, above = features // num_heads * num_heads, -(-features // num_heads) * num_heads
        choices = " or ".join(f"features={width}" for width in (below, above) if width)
        raise ValueError(
            f"features={features} is the total width of {num_heads} heads, and {num_heads} does not divide it: write "
            f"{choices} (MultiHeadAttentionWrapper is the one whose features are per head)"
        )
    return features // num_heads


def check_kv_heads(num_heads: int, num_kv_heads: int | None) -> int:
    """Return the number of KV heads; it must divide the number of query heads, and None is as many."""
    heads = num_heads if num_kv_heads is None else as_size("num_kv_heads", num_kv_heads)
    if heads < 1 or num_heads % heads:
        raise ValueError(
            f"num_kv_heads={heads} must divide num_heads={num_heads}, because each KV head serves as many query heads: "
            "write num_kv_heads=1 for one that serves all"
        )
    return heads


def broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Return whether an array of one shape broadcasts to another."""
    return len(shape) <= len(target) and all(m in (1, n) for m, n in zip(shape[::-1], target[::-1], strict=False))


def wide_type(*dtypes: DTypeLike) -> DTypeLike:
    """Return the type of scores, softmax and sums: float32, or float64 where an input has it."""
    return jnp.float64 if jnp.float64 in dtypes else jnp.float32
