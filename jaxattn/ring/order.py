"""Which tokens each device computes, so that all devices have the same work.

Under a causal mask the last tokens attend to many more keys than the first. So the sequence is cut into two chunks for
each of n devices, and device i gets chunks i and 2n - 1 - i: zig-zag order. One of them has as little work as the other
has much, at every step of the ring too.
"""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxattn import masks
from jaxattn.masks import Band
from jaxattn.ring.sending import permute

Order = Literal["natural", "zigzag"]
# Natural order stays if the busiest device has at most so many times the mean work.
BALANCED = 1.1


class Layout(NamedTuple):
    """How many devices there are, and the chunks of each: 1 in natural order, 2 in zig-zag order."""

    devices: int
    chunks: int

    @property
    def total(self) -> int:
        """How many chunks there are on all devices."""
        return self.devices * self.chunks

    def chunks_of(self, device: Any) -> list[Any]:
        """Return the chunks that a device has; its number may be traced."""
        return [device, 2 * self.devices - 1 - device][: self.chunks]


def zigzag_order(tokens: int, devices: int) -> np.ndarray:
    """Return the position of each token in zig-zag order, for `order="zigzag"` of `ring_attention`.

    `x[:, order]` puts a batch into this order, `np.argsort(order)` undoes it, and `order` itself holds the positions
    for rotary and learned embeddings. Reorder tokens and targets once, outside the model, and no layer need do it.

    Example:
        >>> from jaxattn.ring import zigzag_order
        >>> zigzag_order(8, 2).tolist()  # 4 chunks of 2 tokens; device 0 has the first and the last
        [0, 1, 6, 7, 2, 3, 4, 5]
    """
    if devices < 1 or tokens % (2 * devices):
        raise ValueError(
            f"{tokens} tokens do not divide evenly among two chunks for each of {devices} devices: pad to a multiple "
            f"of {2 * max(devices, 1)}"
        )
    layout = Layout(devices, 2)
    chunks = np.arange(tokens).reshape(2 * devices, -1)
    return chunks[[chunk for device in range(devices) for chunk in layout.chunks_of(device)]].ravel()


def choose_layout(mask: masks.Mask | None, T: int, S: int, devices: int) -> Layout:
    """Choose the order in which the busiest device has least work; natural order if that is balanced."""
    natural, zigzag = Layout(devices, 1), Layout(devices, 2)
    if T % zigzag.total or S % zigzag.total:
        return natural
    work = _scores_of_queries(_likely_band(mask), T, S)
    most = {layout: _work(layout, work).max() for layout in (natural, zigzag)}
    is_balanced = most[natural] <= BALANCED * work.sum() / devices
    return natural if is_balanced or most[natural] <= most[zigzag] else zigzag


def _work(layout: Layout, work: np.ndarray) -> np.ndarray:
    """Return the work of each device, from the work of each query."""
    of_chunks = work.reshape(layout.total, -1).sum(-1)
    return np.array([of_chunks[layout.chunks_of(device)].sum() for device in range(layout.devices)])


def _scores_of_queries(band: Band, T: int, S: int) -> np.ndarray:
    """Return how many keys lie in the band of each query."""
    queries = np.arange(T)
    first = 0 if band.first is None else np.clip(queries + band.first, 0, S)
    last = S if band.last is None else np.clip(queries + band.last + 1, 0, S)
    return np.maximum(last - first + np.zeros_like(queries), 0)


def _likely_band(mask: masks.Mask | None) -> Band:
    """Return the band of most queries: an offset that is an array counts as 0, and a prefix as short."""
    match mask:
        case masks.And(first=first, second=second):
            bands = [_likely_band(first), _likely_band(second)]
            firsts, lasts = zip(*bands, strict=True)
            return Band(
                max((bound for bound in firsts if bound is not None), default=None),
                min((bound for bound in lasts if bound is not None), default=None),
            )
        case masks.Or(first=first, second=second):
            known = [band for band in (_likely_band(first), _likely_band(second)) if band != Band()]
            return max(known, key=lambda band: band.first is None, default=Band())
        case masks.Causal():
            return Band(last=0)
        case masks.SlidingWindow(size=size, right=right):
            return Band(1 - size, right)
        case masks.Chunked(size=size):
            return Band(1 - size, size - 1)
    return Band()


class Hops(NamedTuple):
    """How many devices keys travel, to higher and to lower numbers, and whether the last passes to the first."""

    up: int
    down: int
    is_cyclic: bool


def plan_hops(layout: Layout, band: Band, T: int, S: int) -> Hops:
    """Return the fewest hops after which every device has had all keys within its band."""
    n, Cq, Ck = layout.devices, T // layout.total, S // layout.total
    first_query, first_key = (np.array([layout.chunks_of(device) for device in range(n)]) * C for C in (Cq, Ck))
    # (queries' device, its chunk, keys' device, its chunk)
    nearest = first_key[None, None] - (first_query[:, :, None, None] + Cq - 1)
    farthest = first_key[None, None] + Ck - 1 - first_query[:, :, None, None]
    needed = np.ones(nearest.shape, bool)
    if band.last is not None:
        needed &= nearest <= band.last
    if band.first is not None:
        needed &= farthest >= band.first
    here, there = np.nonzero(needed.any((1, 3)))
    up, down = max((here - there).max(initial=0), 0), max((there - here).max(initial=0), 0)
    return Hops(int(up), int(down), False) if up + down < n - 1 or down == 0 else Hops(n - 1, 0, True)


def arrange(array: Array, layout: Layout, mesh_axis: str, axis: int, is_natural: bool) -> Array:
    """Cut a device's tokens into its chunks, (..., tokens, ...) -> (chunks, ..., tokens / chunks, ...).

    Arrays in natural order are put into the layout's: each device sends one half of its tokens, or both.
    """
    if layout.chunks == 1:
        return array[None]
    halves = jnp.split(array, 2, axis)
    if not is_natural:
        return jnp.stack(halves)
    # The first halves hold the even chunks, the second halves the odd ones; each device gets one of either.
    even, odd = (_sent(half, layout, mesh_axis, parity, home=False) for parity, half in enumerate(halves))
    return jnp.stack(_swapped_on_odd(even, odd, mesh_axis))


def restore(chunks: Array, layout: Layout, mesh_axis: str, axis: int, is_natural: bool) -> Array:
    """Undo `arrange`; `axis` is that of the tokens in the result."""
    if layout.chunks == 1:
        return chunks[0]
    if not is_natural:
        return jnp.concatenate([chunks[0], chunks[1]], axis)
    arrived = _swapped_on_odd(chunks[0], chunks[1], mesh_axis)
    halves = [_sent(half, layout, mesh_axis, parity, home=True) for parity, half in enumerate(arrived)]
    return jnp.concatenate(halves, axis)


def _sent(half: Array, layout: Layout, mesh_axis: str, parity: int, home: bool) -> Array:
    """Send chunk 2i + parity from device i to the device that computes it, or back home."""
    n = layout.devices
    pairs = tuple((i, min(2 * i + parity, 2 * n - 1 - (2 * i + parity))) for i in range(n))
    return permute(half, mesh_axis, tuple((to, start) for start, to in pairs) if home else pairs)


def _swapped_on_odd(first: Array, second: Array, mesh_axis: str) -> tuple[Array, Array]:
    is_odd = lax.axis_index(mesh_axis) % 2 == 1
    return jnp.where(is_odd, second, first), jnp.where(is_odd, first, second)
