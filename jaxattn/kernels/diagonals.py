"""A bias that depends on the distance between a query and a key alone: one number for each diagonal of the scores.

    bias[t, s] = diagonals[s - t + T - 1]

So its memory is linear in the tokens, and a tile's entries lie in one short range of the diagonals.
"""

import jax.numpy as jnp
from jax import Array

from jaxattn.kernels.call import AttentionCall


def tile_of_diagonals(diagonals: Array, rows: int, columns: int) -> Array:
    """(..., 1, rows + columns) -> (..., rows, columns): entry (i, j) is diagonal j - i + rows - 1."""
    if rows == 0:
        return jnp.zeros((*diagonals.shape[:-2], 0, columns), diagonals.dtype)
    width = rows + columns
    # Row i of a matrix that is one entry narrower than its rows were begins i entries earlier.
    copies = jnp.roll(diagonals, 1 - rows, axis=-1)
    copies = jnp.broadcast_to(copies, (*diagonals.shape[:-2], rows, width)).reshape(*diagonals.shape[:-2], rows * width)
    skewed = copies[..., : rows * (width - 1)].reshape(*diagonals.shape[:-2], rows, width - 1)
    return skewed[..., :columns]


def sum_diagonals(tile: Array) -> Array:
    """(..., rows, columns) -> (..., 1, rows + columns): the transpose of `tile_of_diagonals`."""
    *batch, rows, columns = tile.shape
    width, no_padding = rows + columns, [(0, 0)] * len(batch)
    skewed = jnp.pad(tile, [*no_padding, (0, 0), (0, rows - 1)]).reshape(*batch, rows * (width - 1))
    copies = jnp.pad(skewed, [*no_padding, (0, rows)]).reshape(*batch, rows, width)
    return jnp.roll(copies.sum(-2, keepdims=True), rows - 1, axis=-1)


def bias_of(call: AttentionCall) -> Array:
    """Materialize the bias `(B, H, T, S)` of a call that has diagonals."""
    T, S, _, _ = call.sizes
    return tile_of_diagonals(pad_diagonals(call, T, S), T, S)


def pad_diagonals(call: AttentionCall, T: int, S: int) -> Array:
    """(B, H, 1, T + S - 1) -> (B, H, 1, T + S), for T queries and S keys after padding."""
    queries, keys, _, _ = call.sizes
    widths = [(0, 0)] * (call.diagonals.ndim - 1)
    return jnp.pad(call.diagonals, [*widths, (T - queries, S - keys + 1)])


def unpad_diagonals(call: AttentionCall, diagonals: Array, T: int) -> Array:
    """Undo `pad_diagonals`."""
    queries, keys, _, _ = call.sizes
    return diagonals[..., T - queries :][..., : queries + keys - 1]
