"""Cutting attention into blocks: how large, which ones hold anything to see, and how to take one out of an array.

The axes are (B, T, H, D) for the queries, (B, S, K, D) for keys and values, and (B, K, G, T, S) for whatever belongs
to the cells (masks, bias, dropout words), where an axis of length 1 stands for all: B examples, K heads of keys, each
shared by G = H / K query heads. (With an axis for groups, the queries would be copied into another order each time.)
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxattn.masks import Mask

Index = tuple[Any, ...]
# XLA's products on a CPU use both operands' caches and all cores from about this size on, measured; smaller ones run
# on a single core.
SIDE = 512
# The scores of one block, all heads together: 2 MB in float32 stay in a processor's caches (blocks of short sequences
# measured faster at half of that), and accelerators want more.
CELLS_CPU, CELLS_ACCELERATOR = 2**19, 2**25


class Blocks(NamedTuple):
    """How much of each axis is computed at once; one of queries and keys is the outer loop's, the other the inner's."""

    batch: int
    key_heads: int
    group: int
    outer: int
    inner: int

    @property
    def heads(self) -> tuple[int, int, int]:
        """The block along the three axes of heads."""
        return self[:3]

    @property
    def query_heads(self) -> int:
        """How many query heads are in the block; they are neighbours."""
        return self.key_heads * self.group

    def counts(self, B: int, K: int, G: int) -> tuple[int, int, int]:
        """How many blocks of heads there are."""
        return B // self.batch, K // self.key_heads, G // self.group


def choose_blocks(B: int, K: int, G: int, outer: int, inner: int, reach: int | None) -> Blocks:
    """Choose blocks for so many heads and tokens; `reach` is how many inner tokens an outer one has to do with at most.

    Blocks along an axis are equally long, so that little is padded.
    """
    side = SIDE
    if reach is not None:
        # A band: half the side if fewer inner blocks span it then.
        side = min((SIDE, SIDE // 2), key=lambda side: -(-(reach - 1 + side) // SIDE))
    bo, bi = _even_share(outer, side), _even_share(inner, SIDE)
    cells = CELLS_CPU if jax.default_backend() == "cpu" else CELLS_ACCELERATOR
    heads = (cells if max(bo, bi) > SIDE // 2 else cells / 2) / (bo * bi)
    group = _nearest_divisor(G, heads)
    # Heads in a block must be neighbours, so the next axis is cut only where this one is whole.
    key_heads = _nearest_divisor(K, heads / group) if group == G else 1
    batch = _nearest_divisor(B, heads / (group * key_heads)) if group * key_heads == G * K else 1
    return Blocks(batch, key_heads, group, bo, bi)


def zero_padded(array: Array, block: int, axis: int = 1) -> Array:
    """Lengthen the axis of tokens to a multiple of `block` with zeros."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, -array.shape[axis] % block)
    return jnp.pad(array, widths)


def full(shape: tuple[int, ...], value: Any, like: Array) -> Array:
    """Fill an array that differs between devices as `like` does: in `jax.shard_map`, what a loop carries must."""
    filled = jnp.full(shape, value, like.dtype)
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return filled
    return jnp.where(jnp.isnan(like.ravel()[0]), filled, filled)


def take(array: Array, start: Index, block: tuple[int, ...]) -> Array:
    """Return the block that begins at `start`; along an axis of 1 it is that one entry."""
    start = tuple(0 if size == 1 else index for size, index in zip(array.shape, start, strict=True))
    return lax.dynamic_slice(array, start, [min(sizes) for sizes in zip(array.shape, block, strict=True)])


def put(array: Array, block: Array, start: Index) -> Array:
    """Return the array with a block written over it; the counterpart of `take`."""
    start = tuple(0 if size == 1 else index for size, index in zip(array.shape, start, strict=True))
    return lax.dynamic_update_slice(array, block, start)


class Visits(NamedTuple):
    """For each outer block `(B, K, G, blocks)`, the first inner token that it has to do with, and how many blocks."""

    first: Array
    number: Array

    def of(self, place: Index) -> tuple[Array, Array]:
        """Return the first token and the number of blocks for the outer block at `(b, k, g, block)`."""
        first, number = (take(array, place, (1,) * 4).reshape(()) for array in self)
        return first, number


def plan_visits(mask: Mask | None, blocks: Blocks, outer: int, inner: int, turned: bool) -> Visits:
    """Find for each outer block the range of inner tokens in which any cell is visible; what lies outside is skipped.

    The outer tokens are queries, or keys if `turned`; both are whole blocks long, and the mask is spread to them.
    """
    rows = outer // blocks.outer
    if mask is None:
        return Visits(jnp.zeros((1, 1, 1, rows), int), jnp.full((1, 1, 1, rows), inner // blocks.inner))
    grain = blocks.inner // 4
    cuts = (inner // grain, grain), (rows, blocks.outer)
    (queries, keys) = cuts if turned else cuts[::-1]

    def cut(array: Array) -> Array:
        across, down = (
            (1, 1) if size == 1 else cut for size, cut in zip(array.shape[3:], (queries, keys), strict=True)
        )
        return array.reshape(*array.shape[:3], *across, *down)

    at_queries = jnp.arange(math.prod(queries)).reshape(*queries, 1, 1)
    at_keys = jnp.arange(math.prod(keys)).reshape(1, 1, *keys)
    visible = jax.tree.map(cut, mask).sees_blocks(at_queries, at_keys)
    visible = jnp.swapaxes(visible, 3, 4) if turned else visible
    for axis, block in enumerate(blocks.heads):
        if visible.shape[axis] > 1:
            visible = visible.reshape(*visible.shape[:axis], -1, block, *visible.shape[axis + 1 :]).any(axis + 1)
    visible = jnp.broadcast_to(visible, (*visible.shape[:3], rows, inner // grain))
    first = grain * jnp.argmax(visible, axis=-1)
    end = inner - grain * jnp.argmax(visible[..., ::-1], axis=-1)
    number = jnp.where(visible.any(-1), -(-(end - first) // blocks.inner), 0)
    # The last block ends where the tokens end, so that no token is visited twice.
    return Visits(jnp.minimum(first, inner - number * blocks.inner), number)


def _even_share(length: int, most: int) -> int:
    """Cut a length into equal blocks of at most so many, rounded up to 16 for the vector registers."""
    return -(-length // (16 * -(-length // most))) * 16


def _nearest_divisor(number: int, wanted: float) -> int:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return min(divisors or [1], key=lambda d: abs(math.log(d / max(wanted, 1))))
