"""Who may see whom. Masks are values: `Causal() & Segments(ids)` is a mask, and so is any boolean array.

True = may attend, everywhere. Queries are rows and keys are columns, both counted from 0; where there are more keys
than queries (cached keys, say), `offset` says at which key the queries begin: query t stands at position t + offset.
Nothing is guessed from the shapes.

A mask is a pytree, so traced `ids`, `lengths` and offsets work under `jit` and `vmap`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool

from jaxattn.checks import as_boolean


class Mask:
    """What the masks have in common: `array`, `&` and `|`; an array stands for itself."""

    def array(self, T: int, S: int) -> Bool[Array, "*batch T S"]:
        """Spell the mask out for T queries and S keys: a boolean array, True = may attend."""
        raise NotImplementedError

    def with_heads(self) -> "Mask":
        """Put a heads axis of one into every batched part, so that `array` gives `(..., 1, T, S)`."""
        return self

    def __and__(self, other: Any) -> "Mask":
        return And(self, as_mask(other))

    def __or__(self, other: Any) -> "Mask":
        return Or(self, as_mask(other))

    __rand__, __ror__ = __and__, __or__
    # NumPy would otherwise take `array & mask` apart into its elements.
    __array_ufunc__ = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """Each query sees itself and what came before: keys s <= t + offset.

    Args:
        offset: position of the first query among the keys; `S - T` aligns the last query with the last key.

    Example:
        >>> from jaxattn import masks
        >>> masks.Causal(offset=1).array(2, 3).tolist()
        [[True, True, False], [True, True, True]]
    """

    offset: int | Array = 0

    def array(self, T: int, S: int) -> Bool[Array, "T S"]:
        if isinstance(self.offset, int):
            return jnp.tril(jnp.ones((T, S), bool), k=self.offset)
        positions, keys = _positions(T, S, self.offset)
        return keys <= positions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlidingWindow(Mask):
    """Each query sees the last `size` keys up to and with itself: t + offset - size < s <= t + offset. So it is causal.

    Args:
        size: how many keys a query sees at the most, itself included.
        offset: position of the first query among the keys.

    Example:
        >>> from jaxattn import masks
        >>> masks.SlidingWindow(2).array(3, 3).tolist()
        [[True, False, False], [True, True, False], [False, True, True]]

    References:
        Beltagy et al. 2020, "Longformer"; Jiang et al. 2023, "Mistral 7B".
    """

    size: int = dataclasses.field(metadata={"static": True})
    offset: int | Array = 0

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 1:
            raise ValueError(
                f"size={self.size!r} must be a whole number from 1 (every query sees itself alone): write "
                "SlidingWindow(256)"
            )

    def array(self, T: int, S: int) -> Bool[Array, "T S"]:
        positions, keys = _positions(T, S, self.offset)
        return (keys <= positions) & (keys > positions - self.size)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segments(Mask):
    """Several documents packed into one sequence do not see each other: a query sees the keys of its own segment.

    Args:
        ids: whole numbers `(..., T)`, the segment of each token.
        key_ids: those of the keys, `(..., S)`, where keys and queries are not the same tokens.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import masks
        >>> (masks.Causal() & masks.Segments(jnp.array([0, 0, 1]))).array(3, 3).tolist()
        [[True, False, False], [True, True, False], [False, False, True]]
    """

    ids: Array
    key_ids: Array | None = None

    def array(self, T: int, S: int) -> Bool[Array, "*batch T S"]:
        ids = _whole_numbers("ids", self.ids, T)
        key_ids = ids if self.key_ids is None else _whole_numbers("key_ids", self.key_ids, S)
        if key_ids.shape[-1] != S:
            raise ValueError(f"ids name {T} tokens, but there are {S} keys: pass key_ids with one for each key")
        return ids[..., :, None] == key_ids[..., None, :]

    def with_heads(self) -> Mask:
        """Put the heads axis between the batch and the tokens."""
        key_ids = None if self.key_ids is None else _before_last(jnp.asarray(self.key_ids))
        return Segments(_before_last(jnp.asarray(self.ids)), key_ids)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lengths(Mask):
    """Sequences padded at their end: keys s < length are seen, the padding is not.

    Args:
        lengths: whole numbers `(...)`, one for each example, without an axis for tokens.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import masks
        >>> masks.Lengths(jnp.array([1, 2])).array(1, 3).tolist()
        [[[True, False, False]], [[True, True, False]]]
    """

    lengths: Array

    def array(self, T: int, S: int) -> Bool[Array, "*batch T S"]:
        lengths = _whole_numbers("lengths", self.lengths)
        keys = jnp.arange(S).reshape((1,) * lengths.ndim + (1, S))
        return jnp.broadcast_to(keys < lengths[..., None, None], (*lengths.shape, T, S))

    def with_heads(self) -> Mask:
        """Put the heads axis behind the batch."""
        return Lengths(jnp.asarray(self.lengths)[..., None])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense(Mask):
    """A boolean array as a mask, so that it combines with the others; broadcasts to the scores `(..., H, T, S)`."""

    visible: Array

    def array(self, T: int, S: int) -> Bool[Array, "*batch T S"]:
        return jnp.asarray(self.visible)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class And(Mask):
    """What both masks show."""

    first: Mask
    second: Mask

    def array(self, T: int, S: int) -> Bool[Array, "*batch T S"]:
        return jnp.logical_and(*_same_rank(self.first.array(T, S), self.second.array(T, S)))

    def with_heads(self) -> Mask:
        """Put the heads axis into both."""
        return And(self.first.with_heads(), self.second.with_heads())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Or(Mask):
    """What either mask shows."""

    first: Mask
    second: Mask

    def array(self, T: int, S: int) -> Bool[Array, "*batch T S"]:
        return jnp.logical_or(*_same_rank(self.first.array(T, S), self.second.array(T, S)))

    def with_heads(self) -> Mask:
        """Put the heads axis into both."""
        return Or(self.first.with_heads(), self.second.with_heads())


def as_mask(mask: Any) -> Mask:
    """Return a mask as it is and a boolean array as a mask; anything else is a TypeError."""
    return mask if isinstance(mask, Mask) else Dense(as_boolean("mask", mask))


def _positions(T: int, S: int, offset: int | Array) -> tuple[Array, Array]:
    """Positions of the queries, as a column, and of the keys, as a row."""
    return jnp.arange(T)[:, None] + offset, jnp.arange(S)[None, :]


def _whole_numbers(name: str, numbers: Any, tokens: int | None = None) -> Array:
    numbers = jnp.asarray(numbers)
    if not jnp.issubdtype(numbers.dtype, jnp.integer):
        raise TypeError(f"{name} has dtype {numbers.dtype}, but must be whole numbers: write {name}.astype(jnp.int32)")
    if tokens is not None and (numbers.ndim == 0 or numbers.shape[-1] != tokens):
        raise ValueError(
            f"{name} has shape {numbers.shape}, but its last axis must hold one number for each of {tokens}"
        )
    return numbers


def _before_last(array: Array) -> Array:
    return array[..., None, :]


def _same_rank(first: Array, second: Array) -> tuple[Array, Array]:
    rank = max(first.ndim, second.ndim)
    return first.reshape((1,) * (rank - first.ndim) + first.shape), second.reshape(
        (1,) * (rank - second.ndim) + second.shape
    )
