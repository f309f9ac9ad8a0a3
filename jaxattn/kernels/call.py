"""One call of attention, checked: what every kernel takes.

The letters of `kernels/`: T queries, S keys, H query heads, K KV heads, G = H / K query heads for each KV head, D and
D_v the widths of keys and values; B stands for any number of batch axes. An axis of 1 stands for all entries of that
axis.
"""

import contextlib
import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from jaxattn.biases import Bias
from jaxattn.checks import as_floating, as_scale, broadcasts, check_dtypes, check_key, check_rank, check_rate, wide_type
from jaxattn.kernels.platforms import platform_of
from jaxattn.masks import Band, Leaf, Mask, as_mask, check_arrays, check_mask_shape
from jaxattn.random_bits import draw_bits, drop

Implementation = Literal["dense", "blockwise", "native", "cudnn"]


STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """The arguments of one call; the second group is known at compile time."""

    query: Leaf  # (B, T, H, D)
    key: Leaf  # (B, S, K, D)
    value: Leaf  # (B, S, K, D_v)
    mask: Mask | None = None  # expanded: every array in it is (B, H, T, S)
    bias: Leaf = None  # (B, H, T, S)
    row_bits: Leaf = None  # (B, H, T, 1), dropout's
    column_bits: Leaf = None  # (1, 1, 1, S)
    diagonals: Leaf = None  # (B, H, 1, T + S - 1), a bias that depends on the distance alone (`diagonals.py`)
    sinks: Leaf = None  # (B, H, 1, 1)

    scale: float = dataclasses.field(default=1.0, metadata=STATIC)
    dropout_rate: float = dataclasses.field(default=0.0, metadata=STATIC)
    soft_cap: float | None = dataclasses.field(default=None, metadata=STATIC)
    # Of the matrix products, as `jax.default_matmul_precision` names it; None is JAX's default.
    precision: str | None = dataclasses.field(default=None, metadata=STATIC)
    # Bounds on the distance between a query and its keys.
    band: Band = dataclasses.field(default=Band(), metadata=STATIC)
    return_weights: bool = dataclasses.field(default=False, metadata=STATIC)
    return_lse: bool = dataclasses.field(default=False, metadata=STATIC)
    # Whether the softmax runs over more keys than these: the results are in the wide type, to be added up, and the
    # backward pass is given the logsumexp over all keys.
    is_partial: bool = dataclasses.field(default=False, metadata=STATIC)
    # The kernel that the caller asks for.
    implementation: Implementation | None = dataclasses.field(default=None, metadata=STATIC)
    # Where the arrays lie, or, inside a kernel, what it is traced for: "cpu", "cuda", or another.
    platform: str = dataclasses.field(default="cpu", metadata=STATIC)
    # How many of the first batch axes `vmap` added; gradients keep these.
    mapped_axes: int = dataclasses.field(default=0, metadata=STATIC)

    @property
    def batch(self) -> tuple[int, ...]:
        """The batch axes, after broadcasting."""
        return jnp.broadcast_shapes(*(leaf.shape[:-3] for leaf in jax.tree.leaves(self)))

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """T queries, S keys, H query heads, K KV heads."""
        return self.query.shape[-3], self.key.shape[-3], self.query.shape[-2], self.key.shape[-2]

    @property
    def num_scores(self) -> int:
        """How many scores there are in all heads and examples."""
        T, S, H, _ = self.sizes
        return math.prod((*self.batch, H, T, S))

    def matmul_precision(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which matrix products have the precision of the call."""
        if self.precision is None:
            return contextlib.nullcontext()
        return jax.default_matmul_precision(self.precision)

    def with_mask(self, logits: Array) -> tuple[Array, Array | None]:
        """Return logits `(B, H, T, S)` and the mask, both of one shape."""
        if self.mask is None:
            return logits, None
        T, S, _, _ = self.sizes
        allowed = self.mask.allows(jnp.arange(T)[:, None], jnp.arange(S)[None, :])
        logits, allowed = jnp.broadcast_arrays(logits, allowed)
        return logits, allowed

    def dropped(self, weights: Array) -> Array:
        """Apply dropout to weights `(B, H, T, S)`, or to their gradients."""
        return drop(weights, self.dropout_rate, self.row_bits, self.column_bits)

    @property
    def is_plain(self) -> bool:
        """Whether the logits are scale · query · key, and nothing else."""
        return self.bias is None and self.diagonals is None and self.soft_cap is None

    @property
    def wide(self) -> DTypeLike:
        """The type to compute in."""
        return wide_type(self.query.dtype, self.key.dtype, self.value.dtype)

    def result_type(self, array: Array) -> DTypeLike:
        """Return the type of the results for an array: of the context for the value, of gradients for each array."""
        return self.wide if self.is_partial else array.dtype


class Options(TypedDict, total=False):
    """The keyword arguments of `dot_product_attention`, for type checkers."""

    scale: float | Array | None
    bias: Array | Bias | None
    soft_cap: float | None
    sinks: Array | None
    dropout_rate: float
    dropout_key: Array | None
    implementation: Implementation | None


class Gradients(NamedTuple):
    """The gradients of a call's arrays, each with the shape of its array, and with all mapped axes."""

    query: Array
    key: Array
    value: Array
    bias: Array | None
    diagonals: Array | None = None
    sinks: Array | None = None


def checked_call(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    *,
    scale: Any = None,
    bias: Any = None,
    soft_cap: float | None = None,
    sinks: Any = None,
    dropout_rate: float = 0.0,
    dropout_key: Any = None,
    return_weights: bool = False,
    return_lse: bool = False,
    implementation: Implementation | None = None,
    dropout_shared: bool = False,
    precision: Any = None,
) -> AttentionCall:
    """Check the arguments of `dot_product_attention`, and two more that Flax's layers take.

    `dropout_shared` drops the same entries in every head and example; `precision` is that of the matrix products.
    """
    query, key, value = as_floating("query", query), as_floating("key", key), as_floating("value", value)
    _check_shapes(query, key, value)
    check_dtypes(query=query, key=key, value=value)
    rate = check_rate(dropout_rate)
    (*batch, T, H, D), S = query.shape, key.shape[-3]
    scores, wide = (*batch, H, T, S), wide_type(query.dtype)
    if D == 0:
        # A width of 1 that holds zeros gives the same scores, 0, and no kernel need know.
        query, key = (jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, 1)]) for array in (query, key))
    query, scale = _split_scale(query, max(D, 1) ** -0.5 if scale is None else scale, wide)
    bits: tuple[Any, Any] = (None, None)
    if rate > 0:
        bits = draw_bits(check_key("dropout_key", dropout_key), (T, S) if dropout_shared else scores)
    band = Band()
    if mask is not None:
        mask = as_mask(mask).with_heads()
        check_arrays(mask, scores)
        check_mask_shape(jax.eval_shape(lambda: mask.array(T, S)).shape, scores)
        mask, band = mask.expanded(T, S), mask.band()
    entries, diagonals = _split_bias(bias, scores)
    lift = functools.partial(_lifted, rank=len(scores))
    return AttentionCall(
        query=query,
        key=key,
        value=value,
        mask=jax.tree.map(lift, mask),
        bias=None if entries is None else lift(entries.astype(wide)),
        row_bits=jax.tree.map(lift, bits[0]),
        column_bits=jax.tree.map(lift, bits[1]),
        diagonals=None if diagonals is None else lift(diagonals.astype(wide)),
        sinks=None if sinks is None else lift(_checked_sinks(sinks, H).astype(wide)[:, None, None]),
        scale=scale,
        dropout_rate=rate,
        soft_cap=_checked_soft_cap(soft_cap),
        precision=_checked_precision(precision),
        band=band,
        return_weights=return_weights,
        return_lse=return_lse,
        implementation=implementation,
        platform=platform_of(query),
    )


def _check_shapes(query: Array, key: Array, value: Array) -> None:
    check_rank("query", query, 3, "T, H, D")
    check_rank("key", key, 3, "S, K, D")
    check_rank("value", value, 3, "S, K, D_v")
    shapes = f"query {query.shape}, key {key.shape}, value {value.shape}"
    if not query.shape[:-3] == key.shape[:-3] == value.shape[:-3]:
        raise ValueError(f"{shapes} differ in the axes before the last three: give all the same batch, or use jax.vmap")
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(f"{shapes}: key and value must agree in tokens and heads, because each key has one value")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"{shapes}: query and key must agree in the last axis, the width D over which they are multiplied"
        )
    if query.shape[-2] and (key.shape[-2] == 0 or query.shape[-2] % key.shape[-2]):
        raise ValueError(
            f"{shapes}: {query.shape[-2]} query heads cannot share {key.shape[-2]} KV heads evenly: the layout is "
            "(..., tokens, heads, width), and the number of KV heads must divide the number of query heads; "
            "if tokens and heads are swapped, write jnp.swapaxes(query, -3, -2)"
        )


def _split_scale(query: Array, scale: Any, wide: Any) -> tuple[Array, float]:
    """Return the query and a scale known at compile time; an array, which may be traced, goes into the query."""
    scale = as_scale(scale, wide)
    return (query, scale) if isinstance(scale, float) else (query.astype(wide) * scale, 1.0)


def _split_bias(bias: Any, scores: tuple[int, ...]) -> tuple[Array | None, Array | None]:
    """Return the bias of each entry, or the bias by distance `(..., H, 1, T + S - 1)`."""
    if bias is None or not isinstance(bias, Bias):
        return (None if bias is None else _checked_bias(bias, scores)), None
    diagonals = bias.diagonals(*scores[-3:])[..., None, :]
    if not broadcasts(diagonals.shape[:-2], scores[:-2]):
        raise ValueError(
            f"bias has an offset of shape {diagonals.shape[:-3]}, which does not broadcast to the batch {scores[:-3]}: "
            "give one offset, or one for each example"
        )
    return None, diagonals


def _checked_sinks(sinks: Any, H: int) -> Array:
    sinks = as_floating("sinks", sinks)
    if sinks.shape != (H,):
        raise ValueError(f"sinks has shape {sinks.shape}, but must hold one logit for each query head: ({H},)")
    return sinks


def _checked_soft_cap(soft_cap: Any) -> float | None:
    if soft_cap is None:
        return None
    if isinstance(soft_cap, bool) or not isinstance(soft_cap, int | float | np.integer | np.floating):
        raise TypeError(
            f"soft_cap is {soft_cap!r}, but must be a plain number, known before tracing: write soft_cap=50.0, or None "
            "for no cap"
        )
    if not 0 < float(soft_cap) < math.inf:
        raise ValueError(
            f"soft_cap={soft_cap!r} must be a finite number above 0: scores stay between -soft_cap and soft_cap; write "
            "soft_cap=50.0, or None for no cap"
        )
    return float(soft_cap)


def _checked_bias(bias: Any, scores: tuple[int, ...]) -> Array:
    bias = as_floating("bias", bias)
    if not broadcasts(bias.shape, scores):
        raise ValueError(
            f"bias has shape {bias.shape}, which does not broadcast to the scores (..., H, T, S) = {scores}"
        )
    return bias


def _checked_precision(precision: Any) -> str | None:
    """Return what `jax.lax.dot_general` takes, by name; of a pair, the higher precision holds for both factors."""
    if precision is None:
        return None
    try:
        presets = lax.DotAlgorithmPreset.__members__
        if isinstance(precision, lax.DotAlgorithmPreset) or (isinstance(precision, str) and precision in presets):
            name = precision if isinstance(precision, str) else precision.name
            return "default" if name == "DEFAULT" else name
        pair = precision if isinstance(precision, tuple | list) else (precision, precision)
        first, second = (lax.Precision(one) for one in pair if isinstance(one, str | lax.Precision))
        return max(first, second, key=lambda one: one.value).name.lower()
    except (TypeError, ValueError):
        raise ValueError(
            f"precision={precision!r} is not supported: write 'default', 'high' or 'highest', a jax.lax.Precision, a "
            "pair of these, a jax.lax.DotAlgorithmPreset, or None"
        ) from None


def _lifted(array: Array, rank: int) -> Array:
    """Add axes of 1 in front."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape)
