"""A mask as the library reads it: operations in postfix order, and the arrays that they test."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxattn import masks
from jaxattn.masks.positions import FARTHEST

# The library has room for twice as many operations: each part but the first adds itself and an `&` or `|`.
MAX_PARTS = 8

KNOWN = masks.Causal | masks.SlidingWindow | masks.Chunked | masks.Lengths | masks.Segments | masks.ArrayMask
CAUSAL, WINDOW, LENGTHS, SEGMENTS, ARRAY, AND, OR, CHUNKED = range(8)  # as in problem.h


class MaskCode(NamedTuple):
    """Each operation is its kind, the place of its first array, and the size and the right of a window."""

    operations: list[tuple[int, int, int, int]]
    arrays: list[Array]


def unsupported(mask: masks.Mask | None) -> str | None:
    """Return why the library cannot read an expanded mask, or None; nothing is computed."""
    parts = _parts(mask)
    for part in parts:
        if not isinstance(part, KNOWN):
            return f"does not know the mask {type(part).__name__}"
    count = sum(2 if isinstance(part, masks.Segments) and _is_long(part.ids) else 1 for part in parts)
    return f"takes masks of up to {MAX_PARTS} parts, not {count}" if count > MAX_PARTS else None


def encode_mask(mask: masks.Mask | None) -> MaskCode:
    """Return the code of a mask that is supported."""
    code = MaskCode([], [])
    if mask is not None:
        _append(code, mask)
    return code


def _parts(mask: masks.Mask | None) -> list[masks.Mask]:
    if isinstance(mask, masks.And | masks.Or):
        return _parts(mask.first) + _parts(mask.second)
    return [] if mask is None else [mask]


def _append(code: MaskCode, mask: masks.Mask) -> None:
    place = len(code.arrays)
    match mask:
        case masks.And() | masks.Or():
            _append(code, mask.first)
            _append(code, mask.second)
            code.operations.append((AND if isinstance(mask, masks.And) else OR, 0, 0, 0))
        case masks.Causal():
            code.operations.append((CAUSAL, place, 0, 0))
            code.arrays.append(mask.offset)
        case masks.SlidingWindow():
            code.operations.append((WINDOW, place, min(mask.size, FARTHEST), min(mask.right, FARTHEST)))
            code.arrays.append(mask.offset)
        case masks.Chunked():
            code.operations.append((CHUNKED, place, min(mask.size, FARTHEST), 0))
            code.arrays.append(mask.offset)
        case masks.Lengths():
            code.operations.append((LENGTHS, place, 0, 0))
            code.arrays.append(mask.lengths)
        case masks.Segments():
            _append_segments(code, mask.ids, mask.key_ids)
        case masks.ArrayMask():
            code.operations.append((ARRAY, place, 0, 0))
            code.arrays.append(mask.allowed)


def _append_segments(code: MaskCode, ids: Array, key_ids: Array) -> None:
    """Compare ids of 64 bits by halves, both of which must be equal."""
    for count, (queries, keys) in enumerate(zip(_halves(ids), _halves(key_ids), strict=True)):
        code.operations.append((SEGMENTS, len(code.arrays), 0, 0))
        code.operations.extend([(AND, 0, 0, 0)] * min(count, 1))
        code.arrays.extend((queries, keys))


def _halves(ids: Array) -> list[Array]:
    """Return the 32-bit parts of integers."""
    if ids.dtype.itemsize < 4:
        return [ids.astype(jnp.int32)]
    parts = lax.bitcast_convert_type(ids, jnp.int32)
    return [parts[..., 0], parts[..., 1]] if _is_long(ids) else [parts]


def _is_long(ids: Array) -> bool:
    return ids.dtype.itemsize == 8
