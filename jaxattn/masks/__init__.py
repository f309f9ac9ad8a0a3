"""Masks: which keys each query may attend to. `Causal() & Segments(ids)` is a mask, and so is any boolean array.

True = may attend, everywhere. Queries are rows and keys are columns, both counted from 0. Where there are more keys
than queries (cached keys, say), `offset` is the position of the first query among the keys: query t stands at t +
offset. Nothing is guessed from the shapes.

A mask is a pytree, so traced ids, lengths and offsets work under `jit` and `vmap`. An offset that is a Python int is
static: kernels skip blocks by it, and each new int recompiles; pass an array, or a NumPy integer, where it changes
from call to call. `array(T, S)` materializes a mask. The kernels never do: `expanded(T, S)` gives every array in the
mask two last axes, T or 1 and S or 1, so that it can be cut into blocks; `allows` then answers for one block, and
`block_mask` says in which blocks anything is unmasked at all.
"""

from jaxattn.masks.base import Band, Leaf, Mask
from jaxattn.masks.combined import And, ArrayMask, Or, as_mask, combine
from jaxattn.masks.positions import Causal, Chunked, Lengths, Prefix, SlidingWindow
from jaxattn.masks.segments import Segments
from jaxattn.masks.shapes import check_arrays, check_mask_shape, materialize

__all__ = [
    "And",
    "ArrayMask",
    "Band",
    "Causal",
    "Chunked",
    "Leaf",
    "Lengths",
    "Mask",
    "Or",
    "Prefix",
    "Segments",
    "SlidingWindow",
    "as_mask",
    "check_arrays",
    "check_mask_shape",
    "combine",
    "materialize",
]
