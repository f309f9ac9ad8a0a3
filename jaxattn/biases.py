"""Biases by position: what is added to the scores for the distance between a query and a key.

`dot_product_attention(..., bias=biases.Alibi.for_heads(8))`. Such a bias has one number for each head and distance, so
its memory is linear in the tokens; a kernel reads the numbers of one tile at a time. Gradients reach the slopes and
the table.

As in masks, `offset` is the position of the first query among the keys: query t stands at t + offset. A Python int is
static, and an array of integers, which may be traced, holds one for each example. A bias is a pytree.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxattn.checks import as_floating, wide_type
from jaxattn.masks import Leaf
from jaxattn.masks.positions import as_positions


class Bias:
    """The base class: `array` for users, `diagonals` for kernels."""

    offset: Leaf

    def array(self, T: int, S: int) -> Float[Array, "*batch H T S"]:
        """Materialize the bias for T queries and S keys."""
        index = jnp.arange(S)[None, :] - jnp.arange(T)[:, None] + T - 1
        return self._of_distances(self._distances(T, S))[..., index]

    def shifted(self, offset: int | Array) -> "Bias":
        """Move the queries by `offset` positions among the keys."""
        return dataclasses.replace(self, offset=self.offset + offset)  # type: ignore[type-var]

    def diagonals(self, H: int, T: int, S: int) -> Float[Array, "*batch H diagonals"]:
        """Return the bias of each head at the T + S - 1 distances from -(T - 1) to S - 1, less the offset."""
        if self._num_heads != H:
            raise ValueError(
                f"bias is for {self._num_heads} heads, but the query has {H}: give one for each query head"
            )
        return self._of_distances(self._distances(T, S))

    @property
    def _num_heads(self) -> int:
        raise NotImplementedError

    def _distances(self, T: int, S: int) -> Array:
        """How far keys stand after (> 0) or before their query, `(..., 1, T + S - 1)`."""
        offset = as_positions("offset", self.offset)[..., None, None]
        distances = jnp.arange(T + S - 1, dtype=jnp.int32) - jnp.asarray(T - 1, jnp.int32)
        return distances.reshape((1,) * (offset.ndim - 1) + (-1,)) - offset

    def _of_distances(self, distances: Array) -> Array:
        """(..., 1, n) -> (..., H, n)."""
        raise NotImplementedError


def _register(cls: type[Any]) -> type[Any]:
    """Register a bias as a pytree: its array is a leaf, its offset is one unless it is a Python int."""
    name, *fixed = [field.name for field in dataclasses.fields(cls) if field.name != "offset"]

    def flatten(bias: Any) -> tuple[Any, Any]:
        static = tuple(getattr(bias, field) for field in fixed)
        leaves = [(jax.tree_util.GetAttrKey(name), getattr(bias, name))]
        if isinstance(bias.offset, int) and not hasattr(bias, "offset_is_leaf"):
            return leaves, (static, bias.offset)
        return [*leaves, (jax.tree_util.GetAttrKey("offset"), bias.offset)], (static, None)

    def unflatten(static: Any, leaves: Any) -> Any:
        values, offset = static
        bias = object.__new__(cls)  # JAX puts other things than arrays there, which the checks would refuse
        fields = dict(zip(fixed, values, strict=True)) | {name: leaves[0], "offset": [*leaves, offset][1]}
        if len(leaves) == 2:
            fields["offset_is_leaf"] = True
        for field, value in fields.items():
            object.__setattr__(bias, field, value)
        return bias

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


@_register
@dataclasses.dataclass(frozen=True)
class Alibi(Bias):
    """Attention with linear biases: -slope · |distance|, with a slope for each head.

    `slopes` `(H,)` are positive where nearer keys shall weigh more; `Alibi.for_heads(H)` has those of the paper.

    Example:
        >>> from jaxattn import biases
        >>> biases.Alibi.for_heads(8).array(3, 3)[0, 2].tolist()  # the last query's, in the first head
        [-1.0, -0.5, -0.0]

    References:
        Press et al. 2021, "Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation".
    """

    slopes: Leaf
    offset: Leaf = 0

    def __post_init__(self) -> None:
        _check_array("slopes", self.slopes, 1, "(H,), one slope for each query head")

    @classmethod
    def for_heads(cls, H: int, offset: Leaf = 0) -> "Alibi":
        """Return the paper's slopes: 2^(-8/H), 2^(-16/H), ...; between powers of two, every other one of the next."""
        if isinstance(H, bool) or not isinstance(H, int | np.integer) or H < 1:
            raise ValueError(f"H={H!r} must be a number of heads: write Alibi.for_heads(8)")
        power = 2 ** int(math.log2(H))
        exponents = [8 * (i + 1) / power for i in range(power)]
        exponents += [8 * (i + 0.5) / power for i in range(H - power)]
        return cls(jnp.asarray(2.0 ** -np.asarray(exponents), jnp.float32), offset)

    @property
    def _num_heads(self) -> int:
        return jnp.shape(self.slopes)[0]

    def _of_distances(self, distances: Array) -> Array:
        slopes = _wide(self.slopes)
        slopes = slopes.reshape((1,) * (distances.ndim - 2) + (-1, 1))
        return -slopes * jnp.abs(distances).astype(slopes.dtype)


@_register
@dataclasses.dataclass(frozen=True)
class Relative(Bias):
    """T5's relative bias: a number for each head and bucket of distances, looked up in a table.

    `table` `(num_buckets, H)` is T5's embedding. Half of the buckets hold one distance each, the others grow
    logarithmically up to `max_distance`, and the last holds all beyond. With `bidirectional`, half of the buckets are
    for keys after the query (encoders); without, these keys share the bucket of distance 0 (decoders).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import biases
        >>> table = jnp.arange(8.0)[:, None]  # 8 buckets, 1 head
        >>> biases.Relative(table, bidirectional=False).array(3, 3)[0].tolist()
        [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [2.0, 1.0, 0.0]]

    References:
        Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer".
    """

    table: Leaf
    bidirectional: bool = True
    max_distance: int = 128
    offset: Leaf = 0

    def __post_init__(self) -> None:
        _check_array("table", self.table, 2, "(num_buckets, H), one number for each bucket and query head")
        least = 4 if self.bidirectional else 2
        if self._num_buckets < least:
            raise ValueError(
                f"table has {self._num_buckets} buckets, but needs at least {least} with "
                f"bidirectional={self.bidirectional}: write jnp.zeros((32, H))"
            )
        if not isinstance(self.max_distance, int | np.integer) or not self.max_distance > self._one_side // 2:
            raise ValueError(
                f"max_distance={self.max_distance!r} must be an integer above {self._one_side // 2}, the number of "
                "distances that have a bucket each: write max_distance=128"
            )

    @property
    def _num_heads(self) -> int:
        return jnp.shape(self.table)[1]

    @property
    def _num_buckets(self) -> int:
        return jnp.shape(self.table)[0]

    @property
    def _one_side(self) -> int:
        """The buckets for keys on one side of the query."""
        return self._num_buckets // 2 if self.bidirectional else self._num_buckets

    def _of_distances(self, distances: Array) -> Array:
        """Look up the buckets, by one table of all distances up to the last bucket."""
        buckets = jnp.asarray(self._buckets())
        magnitude = jnp.abs(distances) if self.bidirectional else jnp.maximum(-distances, 0)
        bucket = buckets[jnp.minimum(magnitude, self.max_distance)]
        if self.bidirectional:
            bucket = bucket + jnp.where(distances > 0, self._one_side, 0).astype(bucket.dtype)
        return jnp.moveaxis(_wide(self.table)[bucket[..., 0, :]], -1, -2)  # (..., n, H) -> (..., H, n)

    def _buckets(self) -> np.ndarray:
        """Return the bucket of each distance from 0 to `max_distance`, computed in float32 as T5 does."""
        exact, distances = self._one_side // 2, np.arange(self.max_distance + 1)
        ratio = np.log(np.maximum(distances, 1).astype(np.float32) / np.float32(exact))
        steps = ratio / np.float32(math.log(self.max_distance / exact)) * np.float32(self._one_side - exact)
        logarithmic = np.minimum(exact + steps.astype(np.int32), self._one_side - 1)
        return np.where(distances < exact, distances, logarithmic).astype(np.int32)


def _check_array(name: str, array: Any, rank: int, layout: str) -> None:
    if as_floating(name, array).ndim != rank:
        raise ValueError(f"{name} has shape {jnp.shape(array)}, but must be {layout}")


def _wide(array: Any) -> Array:
    array = jnp.asarray(array)
    return array.astype(wide_type(array.dtype))
