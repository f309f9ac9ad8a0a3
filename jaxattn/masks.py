"""Who may see whom. Masks are values: `Causal() & Segments(ids)` is a mask, and so is any boolean array.

True = may attend, everywhere. Queries are rows and keys are columns, both counted from 0; where there are more keys
than queries (cached keys, say), `offset` says at which key the queries begin: query t stands at position t + offset.
Nothing is guessed from the shapes.

A mask is a pytree, so traced `ids`, `lengths` and offsets work under `jit` and `vmap`. It can spell itself out
(`array`), or answer for one block of queries and keys at a time, so that nothing of size T × S need exist:
`spread` gives every array of the mask axes for queries and keys, by which it can be cut; `sees` then answers for
given positions, and `sees_blocks` says which blocks of cells hold anything to see at all.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxattn.checks import as_boolean, as_floating

# Whole numbers or an array for whoever makes a mask; JAX puts anything there while it takes a pytree apart.
Leaf = Any


class Mask:
    """What the masks have in common: `array`, `&` and `|`; an array stands for itself."""

    def array(self, T: int, S: int) -> Bool[Array, "*batch T S"]:
        """Spell the mask out for T queries and S keys: a boolean array, True = may attend."""
        return self.spread(T, S).sees(jnp.arange(T)[:, None], jnp.arange(S)[None, :])

    def with_heads(self) -> "Mask":
        """Put a heads axis of one into every batched part, so that `array` gives `(..., 1, T, S)`."""
        return self

    def spread(self, T: int, S: int) -> "Mask":
        """Give every array of the mask two last axes, T or 1 and S or 1, one number for each query or key."""
        raise NotImplementedError

    def sees(self, queries: Int[Array, "#T #S"], keys: Int[Array, "#T #S"]) -> Bool[Array, "*batch #T #S"]:
        """Answer for queries and keys at these positions; the mask is spread, and cut to them."""
        raise NotImplementedError

    def sees_blocks(
        self, queries: Int[Array, "rows bq 1 1"], keys: Int[Array, "1 1 columns bk"]
    ) -> Bool[Array, "*batch #rows #columns"]:
        """Say for every block of queries and keys whether any of its cells is visible; when in doubt, True.

        The positions and the arrays of the spread mask are cut into blocks: T = rows · bq, S = columns · bk.
        """
        raise NotImplementedError

    def reach(self) -> int | None:
        """How many keys a query sees at the most, and how many queries see a key; None if the tokens alone limit it."""
        return None

    def shifted(self, offset: int | Array) -> "Mask":
        """Move the queries so many positions on among the keys; masks that name tokens, not positions, stay."""
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
        offset: position of the first query among the keys; `S - T` aligns the last query with the last key. An array
            `(...)` of whole numbers holds one for each example.

    Example:
        >>> from jaxattn import masks
        >>> masks.Causal(offset=1).array(2, 3).tolist()
        [[True, True, False], [True, True, True]]
    """

    offset: Leaf = 0

    def shifted(self, offset: int | Array) -> Mask:
        return Causal(self.offset + offset)

    def array(self, T: int, S: int) -> Bool[Array, "*batch T S"]:
        if isinstance(self.offset, int):
            return jnp.tril(jnp.ones((T, S), bool), k=self.offset)
        return super().array(T, S)

    def with_heads(self) -> Mask:
        return Causal(_offset_of_heads(self.offset))

    def spread(self, T: int, S: int) -> Mask:
        return Causal(_spread_offset(self.offset))

    def sees(self, queries: Array, keys: Array) -> Array:
        return _compare(keys, queries, self.offset) <= 0

    def sees_blocks(self, queries: Array, keys: Array) -> Array:
        return _compare(_lowest(keys), _highest(queries), _highest(self.offset)) <= 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlidingWindow(Mask):
    """Each query sees the last `size` keys up to and with itself: t + offset - size < s <= t + offset. So it is causal.

    Args:
        size: how many keys a query sees at the most, itself included.
        offset: position of the first query among the keys, or an array of them, as in `Causal`.

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
                f"size={self.size!r} must be a whole number from 1 (every query sees itself alone): write "
                "SlidingWindow(256)"
            )

    def reach(self) -> int | None:
        return self.size

    def shifted(self, offset: int | Array) -> Mask:
        return SlidingWindow(self.size, self.offset + offset)

    def with_heads(self) -> Mask:
        return SlidingWindow(self.size, _offset_of_heads(self.offset))

    def spread(self, T: int, S: int) -> Mask:
        return SlidingWindow(self.size, _spread_offset(self.offset))

    def sees(self, queries: Array, keys: Array) -> Array:
        behind = _compare(keys, queries, self.offset)
        return (behind <= 0) & (behind > -self.size)

    def sees_blocks(self, queries: Array, keys: Array) -> Array:
        nearest = _compare(_lowest(keys), _highest(queries), _highest(self.offset))
        farthest = _compare(_highest(keys), _lowest(queries), _lowest(self.offset))
        return (nearest <= 0) & (farthest > -self.size)


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

    ids: Leaf
    key_ids: Leaf = None

    def with_heads(self) -> Mask:
        key_ids = None if self.key_ids is None else jnp.asarray(self.key_ids)[..., None, :]
        return Segments(jnp.asarray(self.ids)[..., None, :], key_ids)

    def spread(self, T: int, S: int) -> Mask:
        ids = _whole_numbers("ids", self.ids, T)
        key_ids = ids if self.key_ids is None else _whole_numbers("key_ids", self.key_ids, S)
        if key_ids.shape[-1] != S:
            raise ValueError(f"ids name {T} tokens, but there are {S} keys: pass key_ids with one for each key")
        return Segments(ids[..., :, None], key_ids[..., None, :])

    def sees(self, queries: Array, keys: Array) -> Array:
        return jnp.equal(*_same_rank(self.ids, jnp.asarray(self.key_ids)))

    def sees_blocks(self, queries: Array, keys: Array) -> Array:
        # No overlap of the ranges, no common segment; documents packed one after the other overlap at a border only.
        lowest, lowest_key = _same_rank(_lowest(self.ids), _lowest(self.key_ids))
        highest, highest_key = _same_rank(_highest(self.ids), _highest(self.key_ids))
        return (lowest <= highest_key) & (highest >= lowest_key)


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

    lengths: Leaf

    def array(self, T: int, S: int) -> Bool[Array, "*batch T S"]:
        visible = super().array(T, S)
        return jnp.broadcast_to(visible, (*visible.shape[:-2], T, S))

    def with_heads(self) -> Mask:
        return Lengths(jnp.asarray(self.lengths)[..., None])

    def spread(self, T: int, S: int) -> Mask:
        return Lengths(_whole_numbers("lengths", self.lengths)[..., None, None])

    def sees(self, queries: Array, keys: Array) -> Array:
        return jnp.less(*_same_rank(keys, self.lengths))

    def sees_blocks(self, queries: Array, keys: Array) -> Array:
        return jnp.less(*_same_rank(_lowest(keys), _highest(self.lengths)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense(Mask):
    """A boolean array as a mask, so that it combines with the others; broadcasts to the scores `(..., H, T, S)`."""

    visible: Leaf

    def array(self, T: int, S: int) -> Bool[Array, "*batch T S"]:
        return jnp.asarray(self.visible)

    def spread(self, T: int, S: int) -> Mask:
        visible = jnp.asarray(self.visible)
        return Dense(visible.reshape((1,) * (2 - visible.ndim) + visible.shape))

    def sees(self, queries: Array, keys: Array) -> Array:
        return self.visible

    def sees_blocks(self, queries: Array, keys: Array) -> Array:
        return self.visible.any((-3, -1))


@dataclasses.dataclass(frozen=True)
class Pair(Mask):
    """Two masks under one operation, cell by cell."""

    first: Leaf
    second: Leaf

    @staticmethod
    def combine(first: Array, second: Array) -> Array:
        """Join what the two say of the same cells."""
        raise NotImplementedError

    def array(self, T: int, S: int) -> Bool[Array, "*batch T S"]:
        return self.combine(*_same_rank(self.first.array(T, S), self.second.array(T, S)))

    def shifted(self, offset: int | Array) -> Mask:
        return type(self)(self.first.shifted(offset), self.second.shifted(offset))

    def with_heads(self) -> Mask:
        return type(self)(self.first.with_heads(), self.second.with_heads())

    def spread(self, T: int, S: int) -> Mask:
        return type(self)(self.first.spread(T, S), self.second.spread(T, S))

    def sees(self, queries: Array, keys: Array) -> Array:
        return self.combine(*_same_rank(self.first.sees(queries, keys), self.second.sees(queries, keys)))

    def sees_blocks(self, queries: Array, keys: Array) -> Array:
        return self.combine(*_same_rank(self.first.sees_blocks(queries, keys), self.second.sees_blocks(queries, keys)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class And(Pair):
    """What both masks show."""

    @staticmethod
    def combine(first: Array, second: Array) -> Array:
        return jnp.logical_and(first, second)

    def reach(self) -> int | None:
        return min((reach for reach in (self.first.reach(), self.second.reach()) if reach is not None), default=None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Or(Pair):
    """What either mask shows."""

    @staticmethod
    def combine(first: Array, second: Array) -> Array:
        return jnp.logical_or(first, second)


def as_mask(mask: Any) -> Mask:
    """Return a mask as it is and a boolean array as a mask; anything else is a TypeError."""
    return mask if isinstance(mask, Mask) else Dense(as_boolean("mask", mask))


def both(first: Any, second: Any) -> Mask | None:
    """Return what both masks show, where None shows everything."""
    if first is None or second is None:
        return None if first is second else as_mask(second if first is None else first)
    return as_mask(first) & second


def assert_causal(function: Callable[[Array], Any], x: Float[Array, "..."], *, axis: int = -2) -> None:
    """Assert that no output of a function of token vectors depends on a later input: its gradient there is exactly 0.

    Args:
        function: from token vectors to one array with as many tokens on the same axis, a layer with its variables, say;
            dropout is fine if the key is fixed.
        x: token vectors to try it on; random ones, for a gradient can be 0 by chance where all are alike.
        axis: the axis of tokens, -2 for `(..., T, d)`.

    Raises:
        AssertionError: an output depends on a later input, and the message says which on which; or its gradient is not
            a number.
        TypeError: `x` is not floating point.
        ValueError: there is one token only, or the outputs are not as many as the inputs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import assert_causal, CausalAttention
        >>> layer, x = CausalAttention(features=2), jax.random.normal(jax.random.key(0), (6, 3))
        >>> variables = layer.init(jax.random.key(1), x)
        >>> assert_causal(lambda x: layer.apply(variables, x), x)
        >>> assert_causal(lambda x: jnp.flip(x, -2), x)
        Traceback (most recent call last):
        ...
        AssertionError: output 0 depends on the later input 5, with a gradient of 2: no causal mask reaches it

    References:
        The gradient as a test of what a network sees: Luo et al. 2016, "Understanding the Effective Receptive Field".
    """
    x = as_floating("x", x)
    T = x.shape[axis]
    output, pull = jax.vjp(function, x)
    if T < 2 or output.ndim < abs(axis) or output.shape[axis] != T:
        raise ValueError(
            f"x has shape {x.shape} and the output {output.shape}: on axis {axis} both must have the same number of "
            "tokens, two or more; write axis=-2 for (..., T, d)"
        )
    # Random directions, so that no two parts of an output cancel out.
    direction = jax.random.normal(jax.random.key(0), output.shape).astype(output.dtype)
    of_one = jnp.eye(T, dtype=output.dtype).reshape(
        T, *(T if i == axis % output.ndim else 1 for i in range(output.ndim))
    )
    (gradients,) = jax.vmap(lambda chosen: pull(chosen * direction))(of_one)
    # (T outputs, ..., T inputs, ...) -> (T outputs, T inputs)
    largest = jnp.abs(jnp.moveaxis(gradients, axis % x.ndim + 1, 1)).reshape(T, T, -1).max(-1)
    later = jnp.triu(jnp.where(jnp.isnan(largest), jnp.inf, largest), k=1)
    t, s = divmod(int(later.argmax()), T)
    if later[t, s] > 0:
        raise AssertionError(
            f"output {t} depends on the later input {s}, with a gradient of {float(largest[t, s]):.2g}: "
            "no causal mask reaches it"
        )


def _offset_of_heads(offset: int | Array) -> int | Array:
    return offset if isinstance(offset, int) else jnp.asarray(offset)[..., None] if jnp.ndim(offset) else offset


def _spread_offset(offset: int | Array) -> Array:
    return _whole_numbers("offset", offset)[..., None, None]


def _compare(keys: Array, queries: Array, offset: Any) -> Array:
    """How far each key stands behind (< 0) or ahead of each query."""
    distance, offset = _same_rank(keys - queries, jnp.asarray(offset))
    return distance - offset


def _lowest(blocks: Any) -> Array:
    """The lowest number of each block, of an array cut into `(..., rows, bq, columns, bk)`."""
    return blocks.min((-3, -1))


def _highest(blocks: Any) -> Array:
    return blocks.max((-3, -1))


def _whole_numbers(name: str, numbers: Any, tokens: int | None = None) -> Array:
    numbers = jnp.asarray(numbers)
    if not jnp.issubdtype(numbers.dtype, jnp.integer):
        raise TypeError(f"{name} has dtype {numbers.dtype}, but must be whole numbers: write {name}.astype(jnp.int32)")
    if tokens is not None and (numbers.ndim == 0 or numbers.shape[-1] != tokens):
        raise ValueError(
            f"{name} has shape {numbers.shape}, but its last axis must hold one number for each of {tokens}"
        )
    return numbers


def _same_rank(first: Array, second: Array) -> tuple[Array, Array]:
    rank = max(first.ndim, second.ndim)
    return first.reshape((1,) * (rank - first.ndim) + first.shape), second.reshape(
        (1,) * (rank - second.ndim) + second.shape
    )
