"""What every mask is: the base class, the band that it may have, and what its subclasses share."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int

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
        from jaxattn.masks.combined import And, as_mask  # whose classes are masks themselves

        return And(self, as_mask(other))

    def __or__(self, other: Any) -> "Mask":
        from jaxattn.masks.combined import Or, as_mask

        return Or(self, as_mask(other))

    __rand__, __ror__ = __and__, __or__
    # NumPy would otherwise apply `array & mask` to each element of the array.
    __array_ufunc__ = None


def block_min(blocks: Any) -> Array:
    """The smallest number in each block, of an array cut into `(..., rows, bq, columns, bk)`."""
    return blocks.min((-3, -1))


def block_max(blocks: Any) -> Array:
    """The largest number in each block."""
    return blocks.max((-3, -1))


def same_rank(first: Array, second: Array) -> tuple[Array, Array]:
    """Add axes of 1 in front of the array that has fewer."""
    rank = max(first.ndim, second.ndim)
    return first.reshape((1,) * (rank - first.ndim) + first.shape), second.reshape(
        (1,) * (rank - second.ndim) + second.shape
    )
