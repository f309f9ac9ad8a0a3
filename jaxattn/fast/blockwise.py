"""Exact attention in memory that grows with the length alone: block after block, no (T, S) array ever exists.

A softmax can be summed piece by piece. Keep for each query the sum of its exponentials and their weighted values; each
block of keys adds its share, and one division at the end gives the context (Milakov & Gimelshein 2018, "Online
normalizer calculation for softmax"; Rabe & Staats 2021, "Self-attention does not need O(n²) memory"). The backward
pass keeps only the context and the logarithm of the sums, and computes each block's weights anew (Dao et al. 2022,
"FlashAttention"). Blocks in which a mask shows nothing are never visited.

What makes it fast on a CPU, where time goes into passes over the scores as much as into products:
- Exponents are in base 2, with log2(e) folded into the scale, and cheap (`exponential.py`).
- No exponential overflows if no exponent can exceed 32, which |query| · |key| bounds: then the usual subtraction of the
  highest score, a pass of its own, is left out. Otherwise it is made, block by block.
- The backward pass works on transposed scores, so that all its products are of the kind that runs fastest.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxattn.fast.backward import pull_back_blockwise
from jaxattn.fast.blocks import choose_blocks
from jaxattn.fast.cells import Cells, Settings, gather_cells
from jaxattn.fast.forward import attend_blockwise
from jaxattn.fast.spread import let_compiler_spread, spread_over_devices, vary_alike
from jaxattn.functional import products_of, wide_type
from jaxattn.masks import Mask


def blockwise_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Mask | None,
    scale: Any,
    bias: Array | None,
    dropout_rate: float,
    dropout_key: Array | None,
    dropout_shared: bool,
    precision: Any,
) -> Array:
    """Compute `dot_product_attention` block by block; the arguments are checked there, the mask has its heads axis.

    Raises:
        TypeError: a derivative in forward mode is taken, or a second one.
    """
    *batch, T, H, D = query.shape
    S, K = key.shape[-3:-1]
    if 0 in (*query.shape, *value.shape):
        return jnp.zeros((*batch, T, H, value.shape[-1]), query.dtype)
    B, wide = math.prod(batch), wide_type(query.dtype)
    cells = gather_cells((*batch, H, T, S), K, mask, bias, dropout_rate, dropout_key, dropout_shared)
    # (..., T, H, D) -> (B, T, H, D), and (..., S, K, D) -> (B, S, K, D)
    queries = query.astype(wide).reshape(B, T, H, D)
    keys, values = (array.astype(wide).reshape(B, S, K, -1) for array in (key, value))
    if not isinstance(scale, int | float):
        # It may be traced, and have a gradient.
        keys, scale = keys * jnp.asarray(scale, wide), 1.0
    settings = Settings(float(scale), dropout_rate, None if mask is None else mask.reach(), precision)
    try:
        queries, keys, values, cells = vary_alike((queries, keys, values, cells))
        attend = let_compiler_spread(functools.partial(_attend, settings), queries)
        context = attend(queries, keys, values, cells)
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(
            "blockwise attention has derivatives in reverse mode (jax.grad, jax.vjp) only, and this asks for forward "
            "mode: write dot_product_attention(..., implementation='dense')"
        ) from error
    return context.reshape(*batch, T, H, -1).astype(query.dtype)


@functools.partial(jax.jit, static_argnums=0)
def _attend(settings: Settings, query: Array, key: Array, value: Array, cells: Cells) -> Array:
    return _differentiable(settings, query, key, value, cells)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable(settings: Settings, query: Array, key: Array, value: Array, cells: Cells) -> Array:
    return over_examples(forward_pass, settings, (query, key, value, cells))[0]


def _save(settings: Settings, query: Array, key: Array, value: Array, cells: Cells) -> tuple[Array, Any]:
    query, key, value = _once(query, key, value)
    context, log_sums = over_examples(forward_pass, settings, (query, key, value, cells))
    return context, (query, key, value, cells, context, log_sums)


def _pull(settings: Settings, saved: Any, gradient: Array) -> tuple[Array, Array, Array, Cells]:
    query, key, value, cells, context, log_sums = saved
    query, key, value, context, log_sums, gradient = _once(query, key, value, context, log_sums, gradient)
    arguments = (query, key, value, cells, context, log_sums, gradient)
    *gradients, bias = over_examples(backward_pass, settings, arguments)
    return *gradients, Cells(bias=bias)


_differentiable.defvjp(_save, _pull)


@jax.custom_jvp
def _once(*arrays: Array) -> tuple[Array, ...]:
    return arrays


@_once.defjvp
def _(primals: Any, tangents: Any) -> Any:
    raise TypeError(
        "blockwise attention has first derivatives only, and this asks for second ones: "
        "write dot_product_attention(..., implementation='dense')"
    )


def over_examples(function: Any, settings: Settings, arguments: Any) -> Any:
    """Call `function`; under `vmap`, the mapped axis becomes more examples, so that blocks do not grow by it."""

    @jax.custom_batching.custom_vmap
    def call(*arguments: Any) -> Any:
        return function(settings, *arguments)

    @call.def_vmap
    def _(size: int, batched: Any, *arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        mapped = jax.tree.leaves(tuple(batched))
        one = [jax.typeof(leaf).update(shape=leaf.shape[axis:]) for leaf, axis in zip(leaves, mapped, strict=True)]
        expected = jax.eval_shape(lambda leaves: function(settings, *jax.tree.unflatten(structure, leaves)), one)
        B = arguments[0].shape[int(batched[0])]
        flat = [_merge(size, B, leaf, axis) for leaf, axis in zip(leaves, mapped, strict=True)]
        result = over_examples(function, settings, jax.tree.unflatten(structure, flat))
        return jax.tree.map(functools.partial(_split, size), result, expected), jax.tree.map(lambda _: True, expected)

    return call(*arguments)


def _merge(size: int, B: int, array: Array, mapped: bool) -> Array:
    """(size, B or 1, ...) -> (size * B, ...); what is not mapped is repeated."""
    if not mapped:
        array = array[None]
    return jnp.broadcast_to(array, (size, B, *array.shape[2:])).reshape(size * B, *array.shape[2:])


def _split(size: int, array: Array, expected: Any) -> Array:
    """(size * B, ...) -> (size, B, ...), summed where one entry stood for all B."""
    array = array.reshape(size, -1, *array.shape[1:])
    return array if array.shape[1] == expected.shape[0] else array.sum(1, keepdims=True)


@spread_over_devices
def forward_pass(settings: Settings, query: Array, key: Array, *others: Any) -> Any:
    """Run `attend_blockwise` with blocks that fit the shapes."""
    (B, T, H, _), (S, K) = query.shape, key.shape[1:3]
    with products_of(settings.precision):
        return attend_blockwise(choose_blocks(B, K, H // K, T, S, settings.reach), settings, query, key, *others)


@spread_over_devices
def backward_pass(settings: Settings, query: Array, key: Array, *others: Any) -> Any:
    """Run `pull_back_blockwise` with blocks that fit the shapes."""
    (B, T, H, _), (S, K) = query.shape, key.shape[1:3]
    with products_of(settings.precision):
        return pull_back_blockwise(choose_blocks(B, K, H // K, S, T, settings.reach), settings, query, key, *others)
