"""Masks: which keys each query may attend to. `Causal() & Segments(ids)` is a mask, and so is any boolean array.

True = may attend, everywhere. Queries are rows and keys are columns, both counted from 0. Where there are more keys
than queries (cached keys, say), `offset` is the position of the first query among the keys: query t stands at t +
offset. Nothing is guessed from the shapes.

A mask is a pytree, so traced ids, lengths and offsets work under `jit` and `vmap`. `array(T, S)` materializes it. The
kernels never do: `expanded(T, S)` gives every array in the mask two last axes, T or 1 and S or 1, so that it can be cut
into blocks; `allows` then answers for one block, and `block_mask` says in which blocks anything is unmasked at all.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int

from jaxattn.checks import as_boolean, as_integers, broadcasts

# An array, or an integer or None where a comment says so; JAX puts other things there while it rebuilds a pytree.
Leaf = Any


class Band(NamedTuple):
    """Bounds that hold for every query, known at compile time: t + first <= s <= t + last. None is no bound."""

    first: int | None = None
    last: int | None = None

    @property
    def width(self) -> int | None:
        """The largest number of keys that a query may attend to, if both bounds are known."""
        return None if self.first is None or self.last is None else max(0, self.last - self.first + 1)

    @property
    def transposed(self) -> "Band":
        """The same bounds from the side of a key: s + first <= t <= s + last."""
        return Band(None if self.last is None else -self.last, None if self.first is None else -self.first)


class Mask:
    """The base class: `array`, `&` and `|` for users, the other methods for kernels."""

    def array(self, T: int, S: int) -> Bool[Array, "*batch T S"]:
        """Materialize the mask for T queries and S keys."""
        return self.expanded(T, S).allows(jnp.arange(T)[:, None], jnp.arange(S)[None, :])

    def with_heads(self) -> "Mask":
        """Insert a heads axis of 1 into every batched array, so that `array` gives `(..., 1, T, S)`."""
        return self

    def expanded(self, T: int, S: int) -> "Mask":
        """Give every array in the mask two last axes, T or 1 and S or 1."""
        raise NotImplementedError

    def allows(self, queries: Int[Array, "#T #S"], keys: Int[Array, "#T #S"]) -> Bool[Array, "*batch #T #S"]:
        """Return the mask for queries and keys at these positions; the mask is expanded, and cut to them."""
        raise NotImplementedError

    def block_mask(
        self, queries: Int[Array, "rows bq 1 1"], keys: Int[Array, "1 1 columns bk"]
    ) -> Bool[Array, "*batch #rows #columns"]:
        """Return for every block of queries and keys whether any entry is unmasked; when in doubt, True.

        The positions and the arrays of the expanded mask are cut into blocks: T = rows · bq, S = columns · bk.
        """
        raise NotImplementedError

    def band(self) -> Band:
        """Return what is known at compile time of the distance between a query and its keys."""
        return Band()

    def shifted(self, offset: int | Array) -> "Mask":
        """Move the queries by `offset` positions among the keys; masks that name tokens, not positions, stay."""
        return self

    def __and__(self, other: Any) -> "Mask":
        return And(self, as_mask(other))

    def __or__(self, other: Any) -> "Mask":
        return Or(self, as_mask(other))

    __rand__, __ror__ = __and__, __or__
    # NumPy would otherwise apply `array & mask` to each element of the array.
    __array_ufunc__ = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """Each query attends to itself and to earlier tokens: keys s <= t + offset.

    `offset` is the position of the first query among the keys; `S - T` aligns the last query with the last key. An
    array `(...)` of integers holds one for each example.

    Example:
        >>> from jaxattn import masks
        >>> masks.Causal(offset=1).array(2, 3).tolist()
        [[True, True, False], [True, True, True]]
    """

    offset: Leaf = 0

    def array(self, T: int, S: int) -> Bool[Array, "*batch T S"]:
        if isinstance(self.offset, int):
            return jnp.tril(jnp.ones((T, S), bool), k=self.offset)
        return super().array(T, S)

    def with_heads(self) -> Mask:
        return Causal(_with_heads_axis(self.offset))

    def expanded(self, T: int, S: int) -> Mask:
        return Causal(_expanded_offset(self.offset))

    def allows(self, queries: Array, keys: Array) -> Array:
        return _distance(keys, queries, self.offset) <= 0

    def block_mask(self, queries: Array, keys: Array) -> Array:
        return _distance(_block_min(keys), _block_max(queries), _block_max(self.offset)) <= 0

    def band(self) -> Band:
        return Band(last=self.offset) if isinstance(self.offset, int) else Band()

    def shifted(self, offset: int | Array) -> Mask:
        return Causal(self.offset + offset)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlidingWindow(Mask):
    """Each query attends to the last `size` keys up to itself: t + offset - size < s <= t + offset. So it is causal.

    `offset` is the position of the first query among the keys, as in `Causal`.

    Example:
        >>> from jaxattn import masks
        >>> masks.SlidingWindow(2).array(3, 3).tolist()
        [[True, False, False], [True, True, False], [False, True, True]]

    References:
        Beltagy et al. 2020, "Longformer"; Jiang et al. 2023, "Mistral 7B".
    """

    size: int = dataclasses.field(metadata={"static": True})
    offset: Leaf = 0

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 1:
            raise ValueError(
                f"size={self.size!r} must be an integer of at least 1 (each query attends to itself alone): write "
                "SlidingWindow(256)"
            )

    def with_heads(self) -> Mask:
        return SlidingWindow(self.size, _with_heads_axis(self.offset))

    def expanded(self, T: int, S: int) -> Mask:
        return SlidingWindow(self.size, _expanded_offset(self.offset))

    def allows(self, queries: Array, keys: Array) -> Array:
        distance = _distance(keys, queries, self.offset)
        return (distance <= 0) & (distance > -self.size)

    def block_mask(self, queries: Array, keys: Array) -> Array:
        nearest = _distance(_block_min(keys), _block_max(queries), _block_max(self.offset))
        farthest = _distance(_block_max(keys), _block_min(queries), _block_min(self.offset))
        return (nearest <= 0) & (farthest > -self.size)

    def band(self) -> Band:
        return Band(self.offset - self.size + 1, self.offset) if isinstance(self.offset, int) else Band()

    def shifted(self, offset: int | Array) -> Mask:
        return SlidingWindow(self.size, self.offset + offset)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segments(Mask):
    """Documents packed into one sequence do not attend to each other: a query attends to keys of its own segment.

    `ids` `(..., T)` are integers, the segment of each token; `key_ids` `(..., S)` are those of the keys, where keys and
    queries are not the same tokens.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import masks
        >>> (masks.Causal() & masks.Segments(jnp.array([0, 0, 1]))).array(3, 3).tolist()
        [[True, False, False], [True, True, False], [False, False, True]]
    """

    ids: Leaf
    key_ids: Leaf = None

    def with_heads(self) -> Mask:
        key_ids = None if self.key_ids is None else jnp.asarray(self.key_ids)[..., None, :]
        return Segments(jnp.asarray(self.ids)[..., None, :], key_ids)

    def expanded(self, T: int, S: int) -> Mask:
        ids = _one_per_token("ids", self.ids, T)
        key_ids = ids if self.key_ids is None else _one_per_token("key_ids", self.key_ids, S)
        if key_ids.shape[-1] != S:
            raise ValueError(f"ids hold {T} tokens, but there are {S} keys: pass key_ids with one for each key")
        return Segments(ids[..., :, None], key_ids[..., None, :])

    def allows(self, queries: Array, keys: Array) -> Array:
        return jnp.equal(*_same_rank(self.ids, jnp.asarray(self.key_ids)))

    def block_mask(self, queries: Array, keys: Array) -> Array:
        # Blocks whose ranges of ids do not overlap share no segment; documents in order overlap at a border only.
        least, least_key = _same_rank(_block_min(self.ids), _block_min(self.key_ids))
        largest, largest_key = _same_rank(_block_max(self.ids), _block_max(self.key_ids))
        return (least <= largest_key) & (largest >= least_key)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lengths(Mask):
    """Sequences padded at their end: keys s < length are attended to, the padding is not.

    `lengths` `(...)` are integers, one for each example, without a token axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import masks
        >>> masks.Lengths(jnp.array([1, 2])).array(1, 3).tolist()
        [[[True, False, False]], [[True, True, False]]]
    """

    lengths: Leaf

    def array(self, T: int, S: int) -> Bool[Array, "*batch T S"]:
        mask = super().array(T, S)
        return jnp.broadcast_to(mask, (*mask.shape[:-2], T, S))

    def with_heads(self) -> Mask:
        return Lengths(jnp.asarray(self.lengths)[..., None])

    def expanded(self, T: int, S: int) -> Mask:
        return Lengths(as_integers("lengths", self.lengths)[..., None, None])

    def allows(self, queries: Array, keys: Array) -> Array:
        return jnp.less(*_same_rank(keys, self.lengths))

    def block_mask(self, queries: Array, keys: Array) -> Array:
        return jnp.less(*_same_rank(_block_min(keys), _block_max(self.lengths)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ArrayMask(Mask):
    """A boolean array as a mask, so that it combines with the others; broadcasts to the scores `(..., H, T, S)`."""

    allowed: Leaf

    def array(self, T: int, S: int) -> Bool[Array, "*batch T S"]:
        return jnp.asarray(self.allowed)

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
        return self.join(*_same_rank(self.first.array(T, S), self.second.array(T, S)))

    def with_heads(self) -> Mask:
        return type(self)(self.first.with_heads(), self.second.with_heads())

    def expanded(self, T: int, S: int) -> Mask:
        return type(self)(self.first.expanded(T, S), self.second.expanded(T, S))

    def allows(self, queries: Array, keys: Array) -> Array:
        return self.join(*_same_rank(self.first.allows(queries, keys), self.second.allows(queries, keys)))

    def block_mask(self, queries: Array, keys: Array) -> Array:
        return self.join(*_same_rank(self.first.block_mask(queries, keys), self.second.block_mask(queries, keys)))

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


def materialize(mask: Any, shape: tuple[int, ...]) -> Bool[Array, "*shape"]:
    """Broadcast a mask, or a boolean array, to scores of the given shape `(..., T, S)`."""
    mask = as_boolean("mask", mask.array(*shape[-2:]) if isinstance(mask, Mask) else mask)
    check_mask_shape(mask.shape, shape)
    return jnp.broadcast_to(mask, shape)


def check_mask_shape(shape: tuple[int, ...], scores: tuple[int, ...]) -> None:
    """Check that a mask of one shape broadcasts to scores of another."""
    if not broadcasts(shape, scores):
        raise ValueError(
            f"mask has shape {shape}, which does not broadcast to the scores {scores}, whose last two axes are queries "
            "and keys: write mask[:, None] to put a heads axis into a mask (batch, T, S), and mask[:, None, None, :] "
            "for a padding mask (batch, S)"
        )


def _with_heads_axis(offset: int | Array) -> int | Array:
    return offset if jnp.ndim(offset) == 0 else jnp.asarray(offset)[..., None]


def _expanded_offset(offset: int | Array) -> Array:
    return as_integers("offset", offset)[..., None, None]


def _one_per_token(name: str, ids: Any, tokens: int) -> Array:
    ids = as_integers(name, ids)
    if ids.ndim == 0 or ids.shape[-1] != tokens:
        raise ValueError(
            f"{name} has shape {ids.shape}, but its last axis must hold one integer for each of {tokens} tokens"
        )
    return ids


def _distance(keys: Array, queries: Array, offset: Any) -> Array:
    """How far each key stands after (> 0) or before its query."""
    distance, offset = _same_rank(keys - queries, jnp.asarray(offset))
    return distance - offset


def _block_min(blocks: Any) -> Array:
    """The smallest number in each block, of an array cut into `(..., rows, bq, columns, bk)`."""
    return blocks.min((-3, -1))


def _block_max(blocks: Any) -> Array:
    return blocks.max((-3, -1))


def _same_rank(first: Array, second: Array) -> tuple[Array, Array]:
    rank = max(first.ndim, second.ndim)
    return first.reshape((1,) * (rank - first.ndim) + first.shape), second.reshape(
        (1,) * (rank - second.ndim) + second.shape
    )
