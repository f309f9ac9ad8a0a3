"""Masks by document: `Segments`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxattn.checks import as_integers
from jaxattn.masks.base import Leaf, Mask, block_max, block_min, same_rank


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segments(Mask):
    """Documents packed into one sequence do not attend to each other: a query attends to keys of its own segment.

    `ids` `(..., T)` are integers, the segment of each token; `key_ids` `(..., S)` are those of the keys, where keys and
    queries are not the same tokens.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import masks
        >>> (masks.Causal() & masks.Segments(jnp.array([0, 0, 1]))).array(3, 3).tolist()
        [[True, False, False], [True, True, False], [False, False, True]]
    """

    ids: Leaf
    key_ids: Leaf = None

    @property
    def batch_axes(self) -> int:
        return max(jnp.ndim(self.ids), 1 if self.key_ids is None else jnp.ndim(self.key_ids)) - 1

    def with_heads(self) -> Mask:
        ids, key_ids = jnp.asarray(self.ids), None if self.key_ids is None else jnp.asarray(self.key_ids)
        if 0 in (ids.ndim, 1 if key_ids is None else key_ids.ndim):
            return self  # refused when it is expanded
        return Segments(ids[..., None, :], None if key_ids is None else key_ids[..., None, :])

    def expanded(self, T: int, S: int) -> Mask:
        ids = _one_per_token("ids", self.ids, T)
        key_ids = ids if self.key_ids is None else _one_per_token("key_ids", self.key_ids, S)
        if key_ids.shape[-1] != S:
            raise ValueError(
                f"ids has shape {ids.shape}, for {T} queries, but there are {S} keys: write "
                "Segments(ids, key_ids) with one id for each key"
            )
        with jax.numpy_dtype_promotion("standard"):  # integers of any two widths can be compared
            dtype = jnp.promote_types(ids.dtype, key_ids.dtype)
        return Segments(ids.astype(dtype)[..., :, None], key_ids.astype(dtype)[..., None, :])

    def allows(self, queries: Array, keys: Array) -> Array:
        return jnp.equal(*same_rank(self.ids, self.key_ids))

    def block_mask(self, queries: Array, keys: Array) -> Array:
        # Blocks whose ranges of ids do not overlap share no segment; documents in order overlap at a border only.
        least, least_key = same_rank(block_min(self.ids), block_min(self.key_ids))
        largest, largest_key = same_rank(block_max(self.ids), block_max(self.key_ids))
        return (least <= largest_key) & (largest >= least_key)


def _one_per_token(name: str, ids: Any, tokens: int) -> Array:
    ids = as_integers(name, ids)
    if ids.ndim == 0 or ids.shape[-1] != tokens:
        raise ValueError(
            f"{name} has shape {ids.shape}, but its last axis must hold one integer for each of {tokens} tokens"
        )
    return ids
