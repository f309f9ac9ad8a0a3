"""Masks: which keys each query may attend to. `Causal() & Segments(ids)` is a mask, and so is any boolean array.

True = may attend, everywhere. Queries are rows and keys are columns, both counted from 0. Where there are more keys
than queries (cached keys, say), `offset` is the position of the first query among the keys: query t stands at t +
offset. Nothing is guessed from the shapes.

A mask is a pytree, so traced ids, lengths and offsets work under `jit` and `vmap`. An offset that is a Python int is
static: kernels skip blocks by it, and each new int compiles anew; pass an array, or a NumPy integer, where it changes
from call to call. `array(T, S)` materializes a mask. The kernels never do: `expanded(T, S)` gives every array in the
mask two last axes, T or 1 and S or 1, so that it can be cut into blocks; `allows` then answers for one block, and
`block_mask` says in which blocks anything is unmasked at all.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Int

from jaxattn.checks import as_boolean, as_integers, broadcasts

# No sequence is longer: differences of two positions up to here fit into int32.
FARTHEST = 2**30

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

    @property
    def batch_axes(self) -> int:
        """How many batch axes the ids, lengths and offsets have; a boolean array names none."""
        return 0

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


def _register_with_offset(cls: type[Any]) -> type[Any]:
    """Register a mask as a pytree: its offset is static if it is a Python int, and a leaf otherwise."""
    fixed = [field.name for field in dataclasses.fields(cls) if field.name != "offset"]

    def flatten(mask: Any) -> tuple[Any, Any]:
        static = tuple(getattr(mask, name) for name in fixed)
        if isinstance(mask.offset, int) and not hasattr(mask, "offset_is_leaf"):
            return (), (static, mask.offset)
        return ((jax.tree_util.GetAttrKey("offset"), mask.offset),), (static, None)

    def unflatten(static: Any, leaves: Any) -> Any:
        values, offset = static
        mask = cls(*values, *(leaves or [offset]))
        if leaves:
            # So the structure stays if a leaf becomes an int, as in a tree of axes for `jax.vmap`.
            object.__setattr__(mask, "offset_is_leaf", True)
        return mask

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


@_register_with_offset
@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """Each query attends to itself and to earlier tokens: keys s <= t + offset.

    `offset` is the position of the first query among the keys; `S - T` aligns the last query with the last key. A
    Python int is static, an array `(...)` of integers holds one for each example.

    Example:
        >>> from jaxattn import masks
        >>> masks.Causal(offset=1).array(2, 3).tolist()
        [[True, True, False], [True, True, True]]
    """

    offset: Leaf = 0

    def array(self, T: int, S: int) -> Bool[Array, "*batch T S"]:
        if isinstance(self.offset, int):
            return jnp.tril(jnp.ones((T, S), bool), k=max(-FARTHEST, min(self.offset, FARTHEST)))
        return super().array(T, S)

    @property
    def batch_axes(self) -> int:
        return jnp.ndim(self.offset)

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


@_register_with_offset
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

    size: int
    offset: Leaf = 0

    def __post_init__(self) -> None:
        if not isinstance(self.size, int | np.integer) or self.size < 1:
            raise ValueError(
                f"size={self.size!r} must be an integer of at least 1 (each query attends to itself alone): write "
                "SlidingWindow(256)"
            )
        object.__setattr__(self, "size", int(self.size))

    @property
    def batch_axes(self) -> int:
        return jnp.ndim(self.offset)

    def with_heads(self) -> Mask:
        return SlidingWindow(self.size, _with_heads_axis(self.offset))

    def expanded(self, T: int, S: int) -> Mask:
        return SlidingWindow(self.size, _expanded_offset(self.offset))

    def allows(self, queries: Array, keys: Array) -> Array:
        distance = _distance(keys, queries, self.offset)
        return (distance <= 0) & (distance > -min(self.size, FARTHEST))

    def block_mask(self, queries: Array, keys: Array) -> Array:
        nearest = _distance(_block_min(keys), _block_max(queries), _block_max(self.offset))
        farthest = _distance(_block_max(keys), _block_min(queries), _block_min(self.offset))
        return (nearest <= 0) & (farthest > -min(self.size, FARTHEST))

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

    @property
    def batch_axes(self) -> int:
        return max(jnp.ndim(self.ids), 1 if self.key_ids is None else jnp.ndim(self.key_ids)) - 1

    def with_heads(self) -> Mask:
        ids, key_ids = jnp.asarray(self.ids), None if self.key_ids is None else jnp.asarray(self.key_ids)
        if 0 in (ids.ndim, 1 if key_ids is None else key_ids.ndim):
            return self  # refused when it is expanded
        return Segments(ids[..., None, :], None if key_ids is None else key_ids[..., None, :])

    def expanded(self, T: int, S: int) -> Mask:
        ids = _one_per_token("ids", self.ids, T)
        key_ids = ids if self.key_ids is None else _one_per_token("key_ids", self.key_ids, S)
        if key_ids.shape[-1] != S:
            raise ValueError(
                f"ids has shape {ids.shape}, for {T} queries, but there are {S} keys: write "
                "Segments(ids, key_ids) with one id for each key"
            )
        dtype = jnp.promote_types(ids.dtype, key_ids.dtype)
        return Segments(ids.astype(dtype)[..., :, None], key_ids.astype(dtype)[..., None, :])

    def allows(self, queries: Array, keys: Array) -> Array:
        return jnp.equal(*_same_rank(self.ids, self.key_ids))

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

    @property
    def batch_axes(self) -> int:
        return jnp.ndim(self.lengths)

    def with_heads(self) -> Mask:
        return Lengths(jnp.asarray(self.lengths)[..., None])

    def expanded(self, T: int, S: int) -> Mask:
        return Lengths(_as_positions("lengths", self.lengths)[..., None, None])

    def allows(self, queries: Array, keys: Array) -> Array:
        return jnp.less(*_same_rank(keys.astype(jnp.int32), self.lengths.astype(jnp.int32)))

    def block_mask(self, queries: Array, keys: Array) -> Array:
        return jnp.less(*_same_rank(_block_min(keys).astype(jnp.int32), _block_max(self.lengths).astype(jnp.int32)))


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
        first, second = _same_rank(self.first.array(T, S), self.second.array(T, S))
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
    if isinstance(mask, Mask):
        if mask.batch_axes not in (0, len(shape) - 2):
            raise ValueError(
                f"mask has {mask.batch_axes} batch axes, but the scores {shape} have {len(shape) - 2} axes before "
                "queries and keys, and which of them are meant is not guessed: give its ids, lengths or offsets one "
                "axis for each; for scores (batch, heads, T, S) write ids[:, None], or mask.with_heads()"
            )
        check_arrays(mask, shape)
        mask = mask.array(*shape[-2:])
    mask = as_boolean("mask", mask)
    check_mask_shape(mask.shape, shape)
    return jnp.broadcast_to(mask, shape)


def check_mask_shape(shape: tuple[int, ...], scores: tuple[int, ...]) -> None:
    """Check that a mask of one shape broadcasts to scores of another."""
    if broadcasts(shape, scores):
        return
    advice = "give both the same batch and the same heads, or 1 of them"
    if len(shape) <= 2:
        advice = "write mask[:, None, None, :] for a padding mask (batch, S)"
    elif len(shape) == 3:
        advice = "write mask[:, None] to put a heads axis into a mask (batch, T, S)"
    raise ValueError(
        f"mask has shape {shape}, which does not broadcast to the scores {scores}, whose last two axes are queries "
        f"and keys: {advice}"
    )


def check_arrays(mask: Mask, scores: tuple[int, ...]) -> None:
    """Check the boolean arrays in a mask; next to a mask with a batch, the axes of an array must be all there."""
    for shape in _array_shapes(mask):
        check_mask_shape(shape, scores)
        if mask.batch_axes and len(shape) < len(scores) and any(n != 1 for n in shape[:-2]):
            raise ValueError(
                f"an array of shape {shape} is combined with a mask that has a batch, but the scores {scores} have "
                f"{len(scores)} axes: is {shape[:-2]} the batch, or the heads? Write array[:, None] for "
                "(batch, T, S), and array[None] for (heads, T, S)"
            )


def _array_shapes(mask: Mask) -> list[tuple[int, ...]]:
    if isinstance(mask, _Pair):
        return _array_shapes(mask.first) + _array_shapes(mask.second)
    return [jnp.shape(mask.allowed)] if isinstance(mask, ArrayMask) else []


def _with_heads_axis(offset: int | Array) -> int | Array:
    return offset if jnp.ndim(offset) == 0 else jnp.asarray(offset)[..., None]


def _expanded_offset(offset: int | Array) -> Array:
    return _as_positions("offset", offset)[..., None, None]


def _as_positions(name: str, array: Any) -> Array:
    """Return positions as int32; those beyond every sequence mask the same keys as `FARTHEST`."""
    if isinstance(array, int):
        return jnp.asarray(max(-FARTHEST, min(array, FARTHEST)), jnp.int32)
    array = as_integers(name, array)
    if array.dtype.itemsize >= 4:
        least = 0 if jnp.issubdtype(array.dtype, jnp.unsignedinteger) else -FARTHEST
        array = jnp.clip(array, jnp.asarray(least, array.dtype), jnp.asarray(FARTHEST, array.dtype))
    return array.astype(jnp.int32)


def _one_per_token(name: str, ids: Any, tokens: int) -> Array:
    ids = as_integers(name, ids)
    if ids.ndim == 0 or ids.shape[-1] != tokens:
        raise ValueError(
            f"{name} has shape {ids.shape}, but its last axis must hold one integer for each of {tokens} tokens"
        )
    return ids


def _distance(keys: Array, queries: Array, offset: Any) -> Array:
    """How far each key stands after (> 0) or before its query."""
    # Positions are int64 where `jax_enable_x64` is set.
    distance, offset = _same_rank((keys - queries).astype(jnp.int32), jnp.asarray(offset, jnp.int32))
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
