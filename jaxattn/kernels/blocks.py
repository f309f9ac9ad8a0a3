"""How attention is cut into blocks: how large they are, and where each begins.

The outer loop runs over blocks of examples and heads and, in the forward pass, query blocks; its inner loop runs over
the key blocks that a query block attends to. The backward pass has key blocks outside and query blocks inside.
"""

import math
from typing import Any, NamedTuple

from jaxattn.kernels.call import AttentionCall
from jaxattn.kernels.platforms import device_count, on_one_device

Index = Any  # an int, or a traced integer

# A product of two blocks of this many tokens runs near a CPU's full rate; smaller ones run on one core. Measured.
SIDE = 512
MULTIPLE = 16  # block lengths are multiples of this, for the vector registers
# How many scores a block may have on a device in all its heads: 2 MB in float32 stay in a CPU's caches, accelerators
# want more.
SCORES_CPU, SCORES_ACCELERATOR = 2**19, 2**25


class HeadBlock(NamedTuple):
    """A block of examples and heads (B, K, G): its start, its size, its place among the blocks; and G of all heads."""

    start: tuple[Index, ...]
    size: tuple[int, ...]
    place: tuple[Index, ...]
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
    def steps(self) -> Index:
        """How many steps the outer loop takes."""
        return math.prod(self.head_counts) * self.outer_count

    def at(self, step: Index) -> tuple[HeadBlock, Index]:
        """Return the heads and the index of the outer block of one step of the outer loop."""
        *index, outer = _unravel(step, (*self.head_counts, self.outer_count))
        start = tuple(i * size for i, size in zip(index, self.heads, strict=True))
        return HeadBlock(start, self.heads, tuple(index), self.heads[-1] * self.head_counts[-1]), outer


def choose_blocks(call: AttentionCall, outer: int, inner: int) -> Blocks:
    """Choose the block sizes for so many outer and inner tokens.

    On one device, heads are cut into blocks that stay within the limit. Where the compiler shards the call, a block
    spans all examples and heads, so that each device works on its own and nothing is gathered for a slice; there the
    blocks of tokens shrink.
    """
    _, _, H, K = call.sizes
    shape = (*call.batch, K, H // K)
    limit = SCORES_CPU if call.platform == "cpu" else SCORES_ACCELERATOR
    if on_one_device(call.platform):
        outer_block, inner_block = _cached_sides(call, outer, inner)
        # Blocks of short sequences measured faster at half of the limit.
        limit = limit if max(outer_block, inner_block) > SIDE // 2 else limit // 2
        heads = _cut_heads(shape, limit / (outer_block * inner_block))
    else:
        # As if all devices, of whatever kind, shared the call: a power of two between the multiple and the side.
        scores_per_head = SCORES_ACCELERATOR * device_count(call.platform) / max(1, math.prod(shape))
        side = min(SIDE, max(MULTIPLE, 2 ** int(math.log2(max(1, scores_per_head)) / 2)))
        outer_block, inner_block, heads = _block_length(outer, side), _block_length(inner, side), shape
    counts = tuple(n // block for n, block in zip(shape, heads, strict=True))
    return Blocks(heads, counts, outer_block, -(-outer // outer_block), inner_block, -(-inner // inner_block))


def _cached_sides(call: AttentionCall, outer: int, inner: int) -> tuple[int, int]:
    """Return the tokens of outer and inner blocks; in a narrow band, half the side if fewer inner blocks cover it."""
    width, side = call.band.width, SIDE
    if width is not None:
        side = min((SIDE, SIDE // 2), key=lambda side: -(-(width - 1 + side) // SIDE))
    return _block_length(outer, side), _block_length(inner, SIDE)


def _cut_heads(shape: tuple[int, ...], fitting: float) -> tuple[int, ...]:
    """Choose how many of each axis fit into a block, last axis first; an axis is cut if those after it are whole.

    The number divides the axis, because blocks that overlap would add their gradients twice.
    """
    heads: list[int] = []
    for n in reversed(shape):
        whole = all(block == size for block, size in zip(heads, reversed(shape), strict=False))
        # An export may leave a size open.
        known = isinstance(n, int)
        divisors = [d for d in range(1, n + 1) if n % d == 0 and d <= max(fitting, 1)] if known and whole else []
        heads.append(max(divisors, default=1))
        fitting /= heads[-1]
    return tuple(reversed(heads))


def _block_length(length: int, most: int) -> int:
    """Return the length of equal blocks of at most `most`, rounded up to a multiple."""
    return -(-length // (MULTIPLE * -(-length // most))) * MULTIPLE


def _unravel(index: Index, shape: tuple[int, ...]) -> list[Index]:
    """Like `jnp.unravel_index`, but an axis of 1 gives a plain 0, which the compiler need not compute."""
    places: list[Index] = []
    for size in reversed(shape):
        places.append(index % size if size != 1 else 0)
        index = index // size if size != 1 else index
    return places[::-1]
