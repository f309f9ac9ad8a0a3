"""How masks meet scores: which axes are which, and what does not broadcast."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool

from jaxattn.checks import as_boolean, broadcasts
from jaxattn.masks.base import Mask
from jaxattn.masks.combined import And, ArrayMask, Or


def materialize(mask: Any, shape: tuple[int, ...]) -> Bool[Array, "*shape"]:
    """Broadcast a mask, or a boolean array, to scores of the given shape `(..., T, S)`."""
    if isinstance(mask, Mask):
        if mask.batch_axes not in (0, len(shape) - 2):
            raise ValueError(
                f"mask has {mask.batch_axes} batch axes, but the scores {shape} have {len(shape) - 2} axes before "
                "queries and keys, and which of them are meant is not guessed: give its ids, lengths or offsets one "
                "axis for each; for scores (batch, heads, T, S) write ids[:, None], or mask.with_heads()"
            )
        check_arrays(mask, shape)
        mask = mask.array(*shape[-2:])
    mask = as_boolean("mask", mask)
    check_mask_shape(mask.shape, shape)
    return jnp.broadcast_to(mask, shape)


def check_mask_shape(shape: tuple[int, ...], scores: tuple[int, ...]) -> None:
    """Check that a mask of one shape broadcasts to scores of another."""
    if broadcasts(shape, scores):
        return
    advice = "give both the same batch and the same heads, or 1 of them"
    if len(shape) <= 2 < len(scores):
        advice = f"write mask[:, {'None, ' * (len(scores) - 2)}:] for a padding mask (batch, S)"
    elif len(shape) == 3:
        advice = "write mask[:, None] to put a heads axis into a mask (batch, T, S)"
    raise ValueError(
        f"mask has shape {shape}, which does not broadcast to the scores {scores}, whose last two axes are queries "
        f"and keys: {advice}"
    )


def check_arrays(mask: Mask, scores: tuple[int, ...]) -> None:
    """Check the boolean arrays in a mask; next to a mask with a batch, the axes of an array must be all there."""
    for shape in _array_shapes(mask):
        check_mask_shape(shape, scores)
        if mask.batch_axes and len(shape) < len(scores) and any(n != 1 for n in shape[:-2]):
            raise ValueError(
                f"an array of shape {shape} is combined with a mask that has a batch, but the scores {scores} have "
                f"{len(scores)} axes: is {shape[:-2]} the batch, or the heads? Write array[:, None] for "
                "(batch, T, S), and array[None] for (heads, T, S)"
            )


def _array_shapes(mask: Mask) -> list[tuple[int, ...]]:
    if isinstance(mask, And | Or):
        return _array_shapes(mask.first) + _array_shapes(mask.second)
    return [jnp.shape(mask.allowed)] if isinstance(mask, ArrayMask) else []
