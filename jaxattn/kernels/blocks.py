"""How attention is cut into blocks: how large they are, and where each begins.

The outer loop runs over blocks of examples and heads and, in the forward pass, query blocks; its inner loop runs over
the key blocks that a query block attends to. The backward pass has key blocks outside and query blocks inside.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxattn.kernels.call import AttentionCall

Index = Any  # an int, or a traced integer

# A product of two blocks this long runs near a CPU's full rate, measured; smaller ones run on a single core.
SIDE = 512
# The scores of one block in all heads together: 2 MB in float32 stay in a CPU's caches, and accelerators want more.
SCORES_CPU, SCORES_ACCELERATOR = 2**19, 2**25


class Heads(NamedTuple):
    """A block of examples and heads (B, K, G): where it begins, its size, its number, and the number of all heads G."""

    start: tuple[Index, ...]
    size: tuple[int, ...]
    number: tuple[Index, ...]
    group: int

    @property
    def first_query_head(self) -> Index:
        """The first query head; the block's query heads are neighbours."""
        return self.start[-2] * self.group + self.start[-1]


class Blocks(NamedTuple):
    """The block sizes, and how many blocks there are."""

    heads: tuple[int, ...]  # examples in each batch axis, KV heads, query heads of a KV head
    head_counts: tuple[int, ...]
    outer: int
    outer_count: int
    inner: int
    inner_count: int

    @property
    def turns(self) -> int:
        """How many turns the outer loop takes."""
        return math.prod(self.head_counts) * self.outer_count

    def place(self, turn: Index) -> tuple[Heads, Index]:
        """Return the heads of one turn of the outer loop, and the number of its outer block."""
        *number, outer = _unravel(turn, (*self.head_counts, self.outer_count))
        start = tuple(block * size for block, size in zip(number, self.heads, strict=True))
        return Heads(start, self.heads, tuple(number), self.heads[-1] * self.head_counts[-1]), outer


def choose_blocks(call: AttentionCall, outer: int, inner: int, width: int | None) -> Blocks:
    """Choose block sizes for so many outer and inner tokens; `width` bounds the inner tokens of an outer one.

    Heads are cut into blocks where one device computes all of them. Where the compiler shards the call over devices,
    a block spans all examples and heads: then each device works on its own, and no array is gathered for a slice.
    """
    _, _, H, K = call.sizes
    shape = (*call.batch, K, H // K)
    on_cpu = jax.default_backend() == "cpu"
    limit = SCORES_CPU if on_cpu else SCORES_ACCELERATOR
    if on_cpu and on_one_device():
        side = SIDE if width is None else min((SIDE, SIDE // 2), key=lambda side: -(-(width - 1 + side) // SIDE))
        block_outer, block_inner = _equal_parts(outer, side), _equal_parts(inner, SIDE)
        # Blocks of short sequences measured faster at half of the limit.
        fitting = (limit if max(block_outer, block_inner) > SIDE // 2 else limit / 2) / (block_outer * block_inner)
        heads = _cut_heads(shape, fitting)
    else:
        fitting = SCORES_ACCELERATOR * jax.device_count() / max(1, math.prod(shape))
        side = min(SIDE, max(SIDE // 8, 2 ** int(math.log2(max(1, fitting)) / 2)))
        block_outer, block_inner, heads = _equal_parts(outer, side), _equal_parts(inner, side), shape
    counts = tuple(n // block for n, block in zip(shape, heads, strict=True))
    return Blocks(heads, counts, block_outer, -(-outer // block_outer), block_inner, -(-inner // block_inner))


def on_one_device() -> bool:
    """Return whether no compiler shards this program: there is one device, or `shard_map` has all mesh axes."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() == 1 or (bool(mesh.axis_names) and set(mesh.manual_axes) == set(mesh.axis_names))


def _cut_heads(shape: tuple[int, ...], fitting: float) -> tuple[int, ...]:
    """Choose how many of each axis fit into a block, last axis first; an axis is cut if those after it are whole."""
    heads: list[int] = []
    for n in reversed(shape):
        whole = all(block == size for block, size in zip(heads, reversed(shape), strict=False))
        divisors = [d for d in range(1, n + 1) if n % d == 0]
        heads.append(min(divisors, key=lambda d: abs(math.log(d / max(fitting, 1)))) if whole else 1)
        fitting /= heads[-1]
    return tuple(reversed(heads))


def _equal_parts(length: int, most: int) -> int:
    """Cut a length into equal blocks of at most `most`, rounded up to 16 for the vector registers."""
    return -(-length // (16 * -(-length // most))) * 16


def _unravel(index: Index, shape: tuple[int, ...]) -> list[Index]:
    """Like `jnp.unravel_index`, but an axis of 1 gives a plain 0, which the compiler need not compute."""
    places: list[Index] = []
    for size in reversed(shape):
        places.append(index % size if size > 1 else 0)
        index = index // size if size > 1 else index
    return places[::-1]


def split_heads(array: Array, H: int, K: int) -> Array:
    """(B, H, T, S) -> (B, K, G, T, S); an axis of 1 becomes two."""
    heads = (1, 1) if array.shape[-3] == 1 else (K, H // K)
    return array.reshape(*array.shape[:-3], *heads, *array.shape[-2:])


def pad_entries(array: Array, T: int, S: int) -> Array:
    """Pad (..., T, S) by repeating the last entries, so that a mask's minimum and maximum in a block stay the same."""
    widths = [(0, 0)] * (array.ndim - 2)
    widths += [(0, 0 if n == 1 else max(0, to - n)) for n, to in zip(array.shape[-2:], (T, S), strict=True)]
    return jnp.pad(array, widths, mode="edge") if any(after for _, after in widths) else array


def take(array: Array, start: tuple[Index, ...], size: tuple[int, ...]) -> Array:
    """Return the tile of an array that begins at `start`."""
    size = tuple(min(pair) for pair in zip(array.shape, size, strict=True))
    return lax.dynamic_slice(array, inside(array, start), size)


def inside(array: Array, start: tuple[Index, ...]) -> tuple[Index, ...]:
    """Return `start` with 0 for axes of 1, which stand for all entries."""
    return tuple(0 if n == 1 else index for n, index in zip(array.shape, start, strict=True))
