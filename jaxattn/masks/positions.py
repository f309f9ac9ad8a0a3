"""Masks by position: `Causal`, `SlidingWindow`, `Chunked`, `Lengths`, `Prefix`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool

from jaxattn.checks import as_integers
from jaxattn.masks.base import Band, Leaf, Mask, block_max, block_min, same_rank

# No sequence is longer: differences of two positions up to here fit into int32.
FARTHEST = 2**30


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
        mask = cls(**dict(zip(fixed, values, strict=True)), offset=leaves[0] if leaves else offset)
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
        return _distance(block_min(keys), block_max(queries), block_max(self.offset)) <= 0

    def band(self) -> Band:
        return Band(last=self.offset) if isinstance(self.offset, int) else Band()

    def shifted(self, offset: int | Array) -> Mask:
        return Causal(self.offset + offset)


@_register_with_offset
@dataclasses.dataclass(frozen=True)
class SlidingWindow(Mask):
    """Each query attends to the last `size` keys up to itself: t + offset - size < s <= t + offset + right.

    So it is causal, unless `right` lets it attend to so many keys after itself too. `offset` is the position of the
    first query among the keys, as in `Causal`. `Causal() & (SlidingWindow(size) | Prefix(n))` keeps the first n keys
    too, as attention sinks; kernels skip what lies between them and the window.

    Example:
        >>> from jaxattn import masks
        >>> masks.SlidingWindow(2).array(3, 3).tolist()
        [[True, False, False], [True, True, False], [False, True, True]]

    References:
        Beltagy et al. 2020, "Longformer"; Jiang et al. 2023, "Mistral 7B"; Xiao et al. 2023, "Efficient Streaming
        Language Models with Attention Sinks".
    """

    size: int
    offset: Leaf = 0
    right: int = 0

    def __post_init__(self) -> None:
        if not _is_integer(self.size) or self.size < 1:
            raise ValueError(
                f"size={self.size!r} must be an integer of at least 1 (each query attends to itself alone): write "
                "SlidingWindow(256)"
            )
        if not _is_integer(self.right) or self.right < 0:
            raise ValueError(
                f"right={self.right!r} must be an integer of at least 0, the number of keys after the query: write "
                "SlidingWindow(256, right=255), or leave it out for a causal window"
            )
        object.__setattr__(self, "size", int(self.size))
        object.__setattr__(self, "right", int(self.right))

    @property
    def batch_axes(self) -> int:
        return jnp.ndim(self.offset)

    def with_heads(self) -> Mask:
        return dataclasses.replace(self, offset=_with_heads_axis(self.offset))

    def expanded(self, T: int, S: int) -> Mask:
        return dataclasses.replace(self, offset=_expanded_offset(self.offset))

    def allows(self, queries: Array, keys: Array) -> Array:
        distance = _distance(keys, queries, self.offset)
        return (distance <= min(self.right, FARTHEST)) & (distance > -min(self.size, FARTHEST))

    def block_mask(self, queries: Array, keys: Array) -> Array:
        nearest = _distance(block_min(keys), block_max(queries), block_max(self.offset))
        farthest = _distance(block_max(keys), block_min(queries), block_min(self.offset))
        return (nearest <= min(self.right, FARTHEST)) & (farthest > -min(self.size, FARTHEST))

    def band(self) -> Band:
        if not isinstance(self.offset, int):
            return Band()
        return Band(self.offset - self.size + 1, self.offset + self.right)

    def shifted(self, offset: int | Array) -> Mask:
        return dataclasses.replace(self, offset=self.offset + offset)


@_register_with_offset
@dataclasses.dataclass(frozen=True)
class Chunked(Mask):
    """Tokens attend to their own chunk of `size` tokens: (t + offset) // size = s // size.

    `offset` is the position of the first query among the keys, as in `Causal`, which it combines with:
    `Causal() & Chunked(8192)`.

    Example:
        >>> from jaxattn import masks
        >>> masks.Chunked(2).array(3, 3).tolist()
        [[True, True, False], [True, True, False], [False, False, True]]

    References:
        Meta 2025, "Llama 4" (chunked attention).
    """

    size: int
    offset: Leaf = 0

    def __post_init__(self) -> None:
        if not _is_integer(self.size) or self.size < 1:
            raise ValueError(f"size={self.size!r} must be an integer of at least 1: write Chunked(8192)")
        object.__setattr__(self, "size", int(self.size))

    @property
    def batch_axes(self) -> int:
        return jnp.ndim(self.offset)

    def with_heads(self) -> Mask:
        return Chunked(self.size, _with_heads_axis(self.offset))

    def expanded(self, T: int, S: int) -> Mask:
        return Chunked(self.size, _expanded_offset(self.offset))

    def allows(self, queries: Array, keys: Array) -> Array:
        return jnp.equal(*same_rank(self._chunk(keys), self._chunk(queries, self.offset)))

    def block_mask(self, queries: Array, keys: Array) -> Array:
        first, first_key = same_rank(
            self._chunk(block_min(queries), block_min(self.offset)), self._chunk(block_min(keys))
        )
        last, last_key = same_rank(
            self._chunk(block_max(queries), block_max(self.offset)), self._chunk(block_max(keys))
        )
        return (first <= last_key) & (last >= first_key)

    def band(self) -> Band:
        if not isinstance(self.offset, int):
            return Band()
        return Band(self.offset - self.size + 1, self.offset + self.size - 1)

    def shifted(self, offset: int | Array) -> Mask:
        return Chunked(self.size, self.offset + offset)

    def _chunk(self, positions: Array, offset: Any = 0) -> Array:
        """Return the chunk of each position."""
        positions, offset = same_rank(positions.astype(jnp.int32), jnp.asarray(offset, jnp.int32))
        return (positions + offset) // jnp.asarray(min(self.size, FARTHEST), jnp.int32)


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
        return type(self)(jnp.asarray(self.lengths)[..., None])

    def expanded(self, T: int, S: int) -> Mask:
        return type(self)(as_positions("lengths", self.lengths)[..., None, None])

    def allows(self, queries: Array, keys: Array) -> Array:
        return jnp.less(*same_rank(keys.astype(jnp.int32), self.lengths.astype(jnp.int32)))

    def block_mask(self, queries: Array, keys: Array) -> Array:
        return jnp.less(*same_rank(block_min(keys).astype(jnp.int32), block_max(self.lengths).astype(jnp.int32)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix(Lengths):
    """Keys s < length are attended to by every query: `Causal() | Prefix(lengths)` is the mask of a prefix LM.

    Alone it is `Lengths`, under the name that says what it is for. `lengths` may be one number for all examples.

    Example:
        >>> from jaxattn import masks
        >>> (masks.Causal() | masks.Prefix(2)).array(3, 3).tolist()
        [[True, True, False], [True, True, False], [True, True, True]]

    References:
        Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer".
    """


def _is_integer(number: Any) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def _with_heads_axis(offset: int | Array) -> int | Array:
    return offset if jnp.ndim(offset) == 0 else jnp.asarray(offset)[..., None]


def _expanded_offset(offset: int | Array) -> Array:
    return as_positions("offset", offset)[..., None, None]


def as_positions(name: str, array: Any) -> Array:
    """Return positions as int32; those beyond every sequence mask the same keys as `FARTHEST`."""
    if isinstance(array, int):
        return jnp.asarray(max(-FARTHEST, min(array, FARTHEST)), jnp.int32)
    array = as_integers(name, array)
    if array.dtype.itemsize >= 4:
        least = 0 if jnp.issubdtype(array.dtype, jnp.unsignedinteger) else -FARTHEST
        array = jnp.clip(array, jnp.asarray(least, array.dtype), jnp.asarray(FARTHEST, array.dtype))
    return array.astype(jnp.int32)


def _distance(keys: Array, queries: Array, offset: Any) -> Array:
    """How far each key stands after (> 0) or before its query."""
    # Positions are int64 where `jax_enable_x64` is set.
    distance, offset = same_rank((keys - queries).astype(jnp.int32), jnp.asarray(offset, jnp.int32))
    return distance - offset
