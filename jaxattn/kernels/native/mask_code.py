"""A mask as the library reads it: operations in postfix order, and the arrays that they test."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxattn import masks

MAX_OPERATIONS = 15

CAUSAL, WINDOW, LENGTHS, SEGMENTS, ARRAY, AND, OR = range(7)  # as in problem.h


class MaskCode(NamedTuple):
    """Each operation is its kind, the place of its first array, and the size of a window."""

    operations: list[tuple[int, int, int]]
    arrays: list[Array]


def encode_mask(mask: masks.Mask | None) -> MaskCode | None:
    """Return the code of an expanded mask, or None where a part is of a kind that the library does not know."""
    code = MaskCode([], [])
    return code if mask is None or _append(code, mask) else None


def _append(code: MaskCode, mask: masks.Mask) -> bool:
    place = len(code.arrays)
    match mask:
        case masks.And() | masks.Or():
            if not (_append(code, mask.first) and _append(code, mask.second)):
                return False
            code.operations.append((AND if isinstance(mask, masks.And) else OR, 0, 0))
        case masks.Causal():
            code.operations.append((CAUSAL, place, 0))
            code.arrays.append(_position(mask.offset))
        case masks.SlidingWindow():
            code.operations.append((WINDOW, place, mask.size))
            code.arrays.append(_position(mask.offset))
        case masks.Lengths():
            code.operations.append((LENGTHS, place, 0))
            code.arrays.append(_position(mask.lengths))
        case masks.Segments():
            _append_segments(code, mask.ids, mask.key_ids)
        case masks.ArrayMask():
            code.operations.append((ARRAY, place, 0))
            code.arrays.append(mask.allowed)
        case _:
            return False
    return True


def _append_segments(code: MaskCode, ids: Array, key_ids: Array) -> None:
    """Compare ids of 64 bits by halves, both of which must be equal."""
    dtype = jnp.promote_types(ids.dtype, key_ids.dtype)
    parts = zip(_halves(ids.astype(dtype)), _halves(key_ids.astype(dtype)), strict=True)
    for count, (queries, keys) in enumerate(parts):
        code.operations.append((SEGMENTS, len(code.arrays), 0))
        code.operations.extend([(AND, 0, 0)] * min(count, 1))
        code.arrays.extend((queries, keys))


def _halves(ids: Array) -> list[Array]:
    """Return the 32-bit parts of integers."""
    if ids.dtype.itemsize < 8:
        return [lax.bitcast_convert_type(ids, jnp.int32) if ids.dtype.itemsize == 4 else ids.astype(jnp.int32)]
    parts = lax.bitcast_convert_type(ids, jnp.int32)
    return [parts[..., 0], parts[..., 1]]


def _position(number: Array) -> Array:
    """Return positions as int32; those beyond its range mask the same keys as its ends."""
    if number.dtype.itemsize < 4 or number.dtype == jnp.int32:
        return number.astype(jnp.int32)
    ends = jnp.iinfo(jnp.int32)
    number = jnp.minimum(number, number.dtype.type(ends.max))
    return (number if jnp.issubdtype(number.dtype, jnp.unsignedinteger) else jnp.maximum(number, ends.min)).astype(
        jnp.int32
    )
