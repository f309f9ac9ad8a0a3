"""Boolean arrays as masks, and masks joined by `&` and `|`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool

from jaxattn.checks import as_boolean, broadcasts
from jaxattn.masks.base import Band, Leaf, Mask, same_rank


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ArrayMask(Mask):
    """A boolean array as a mask, so that it combines with the others; broadcasts to the scores `(..., H, T, S)`."""

    allowed: Leaf

    def array(self, T: int, S: int) -> Bool[Array, "*batch T S"]:
        allowed = jnp.asarray(self.allowed)
        if not broadcasts(allowed.shape[-2:], (T, S)):
            raise ValueError(
                f"mask has shape {allowed.shape}, but its last two axes must be {T} queries and {S} keys, or 1: write "
                "mask[:, None, :] for a padding mask (batch, S)"
            )
        return allowed

    def expanded(self, T: int, S: int) -> Mask:
        allowed = jnp.asarray(self.allowed)
        return ArrayMask(allowed.reshape((1,) * (2 - allowed.ndim) + allowed.shape))

    def allows(self, queries: Array, keys: Array) -> Array:
        return self.allowed

    def block_mask(self, queries: Array, keys: Array) -> Array:
        return self.allowed.any((-3, -1))


@dataclasses.dataclass(frozen=True)
class _Pair(Mask):
    """Two masks under one operation, entry by entry."""

    first: Leaf
    second: Leaf

    @staticmethod
    def join(first: Array, second: Array) -> Array:
        """Combine the two masks' entries."""
        raise NotImplementedError

    def array(self, T: int, S: int) -> Bool[Array, "*batch T S"]:
        first, second = same_rank(self.first.array(T, S), self.second.array(T, S))
        if any(m != n and 1 not in (m, n) for m, n in zip(first.shape, second.shape, strict=True)):
            raise ValueError(
                f"masks of shapes {first.shape} and {second.shape} are combined, but differ in the axes before queries "
                "and keys: give both the same batch, and write mask[:, None] to put a heads axis into a boolean array "
                "(batch, T, S)"
            )
        return self.join(first, second)

    @property
    def batch_axes(self) -> int:
        return max(self.first.batch_axes, self.second.batch_axes)

    def with_heads(self) -> Mask:
        return type(self)(self.first.with_heads(), self.second.with_heads())

    def expanded(self, T: int, S: int) -> Mask:
        return type(self)(self.first.expanded(T, S), self.second.expanded(T, S))

    def allows(self, queries: Array, keys: Array) -> Array:
        return self.join(*same_rank(self.first.allows(queries, keys), self.second.allows(queries, keys)))

    def block_mask(self, queries: Array, keys: Array) -> Array:
        return self.join(*same_rank(self.first.block_mask(queries, keys), self.second.block_mask(queries, keys)))

    def shifted(self, offset: int | Array) -> Mask:
        return type(self)(self.first.shifted(offset), self.second.shifted(offset))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class And(_Pair):
    """What both masks allow."""

    @staticmethod
    def join(first: Array, second: Array) -> Array:
        return jnp.logical_and(first, second)

    def band(self) -> Band:
        bands = self.first.band(), self.second.band()
        firsts, lasts = ([bound for bound in bounds if bound is not None] for bounds in zip(*bands, strict=True))
        return Band(max(firsts, default=None), min(lasts, default=None))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Or(_Pair):
    """What either mask allows."""

    @staticmethod
    def join(first: Array, second: Array) -> Array:
        return jnp.logical_or(first, second)

    def band(self) -> Band:
        (first, last), (first_other, last_other) = self.first.band(), self.second.band()
        return Band(
            None if first is None or first_other is None else min(first, first_other),
            None if last is None or last_other is None else max(last, last_other),
        )


def as_mask(mask: Any) -> Mask:
    """Return a mask as it is, and a boolean array as a mask."""
    return mask if isinstance(mask, Mask) else ArrayMask(as_boolean("mask", mask))


def combine(first: Any, second: Any) -> Mask | None:
    """Return what both masks allow, where None allows everything."""
    if first is None or second is None:
        return None if first is second else as_mask(second if first is None else first)
    return as_mask(first) & second
