"""Blockwise attention in C++ for CPUs: the same algorithm and residuals as `blockwise`, with both loops in one call.

`jax.ffi` calls the library that the installation compiles from the sources beside this file; without it, `blockwise`
runs. No (T, S) array exists. Results do not depend on the number of threads.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn.kernels.call import AttentionCall, Gradients
from jaxattn.kernels.native import library, mask_code
from jaxattn.kernels.platforms import device_count, on_one_device
from jaxattn.kernels.softmax import LogSumExp, rate, signed_query, sinks_gradient, with_sinks
from jaxattn.kernels.tiles import vary_alike
from jaxattn.random_bits import drop_threshold

__all__ = ["backward", "forward", "unsupported"]

TYPES = jnp.float32, jnp.bfloat16, jnp.float16  # that the library reads; others, float8 say, are converted


def unsupported(call: AttentionCall) -> str | None:
    """Return why this kernel cannot compute the call, or None."""
    if call.platform != "cpu":
        return f"is for CPUs, and this is a {call.platform}"
    if (reason := library.missing()) is not None:
        return reason
    if call.return_weights:
        return "does not store the weights that return_weights asks for"
    if call.wide != jnp.float32:
        return f"computes in float32, not {np.dtype(call.wide).name}"
    if not on_one_device(call.platform):
        devices = device_count(call.platform)
        return f"would gather what {devices} devices share: call it inside jax.shard_map, over all mesh axes"
    if not all(isinstance(n, int) for n in (*call.batch, *call.sizes)):
        return "needs sizes that are known"
    if len(call.batch) > 8:
        return f"takes up to 8 batch axes, not {len(call.batch)}"
    return mask_code.unsupported(call.mask)


def forward(call: AttentionCall) -> tuple[Array, LogSumExp]:
    """Return the context `(B, T, H, D_v)` and the logsumexp of each query's scores `(B, H, T)`."""
    T, _, H, _ = call.sizes
    heads, dtype = _heads(call)
    rows = jax.ShapeDtypeStruct((*call.batch, H, T), jnp.float32)
    results = jax.ShapeDtypeStruct((*call.batch, T, H, call.value.shape[-1]), dtype), rows, rows
    context, largest, log_total = _call("jaxattn_forward", results, call, heads)
    return with_sinks(call, context.astype(call.result_type(call.value)), LogSumExp(largest, log_total))


def backward(
    call: AttentionCall, context: Array, lse: LogSumExp, gradient: Array, lse_gradient: Array | None = None
) -> Gradients:
    """Return the gradients, from the results of the forward pass and their gradients."""
    heads, dtype = _heads(call)
    arrays = (*heads, context.astype(dtype), *lse, gradient.astype(dtype))
    extra = () if lse_gradient is None else (lse_gradient.astype(jnp.float32),)
    arrays = (*arrays, *extra)
    results = [jax.ShapeDtypeStruct((*call.batch, *array.shape[-3:]), dtype) for array in heads]
    query, key, value = _call("jaxattn_backward", results, call, arrays)
    return Gradients(
        query.astype(call.result_type(call.query)),
        key.astype(call.result_type(call.key)),
        value.astype(call.result_type(call.value)),
        None if call.bias is None else _bias_gradient(call, call.bias, arrays),
        None if call.diagonals is None else _bias_gradient(call, call.diagonals, arrays),
        sinks_gradient(call, context, lse, gradient, lse_gradient),
    )


def _bias_gradient(call: AttentionCall, bias: Array, arrays: tuple[Array, ...]) -> Array:
    """Return the bias's gradient from a call of its own, so that compilers can leave it out where it is not used."""
    mapped = call.mapped_axes
    shape = jax.ShapeDtypeStruct((*call.batch[:mapped], *bias.shape[mapped:]), jnp.float32)
    return _call("jaxattn_bias_gradient", [shape], call, arrays)[0]


def _heads(call: AttentionCall) -> tuple[tuple[Array, ...], Any]:
    """Return query, key and value in a type of the library's; a scale that is an array has widened the query."""
    arrays = signed_query(call), call.key, call.value
    is_one = len({array.dtype for array in arrays}) == 1 and not call.is_partial  # the library's results have this type
    dtype = call.query.dtype if is_one and call.query.dtype in TYPES else jnp.dtype(jnp.float32)
    return tuple(array.astype(dtype) for array in arrays), dtype


def _call(name: str, results: Any, call: AttentionCall, arrays: tuple[Array, ...]) -> Any:
    code = mask_code.encode_mask(call.mask)
    biases = [bias.astype(jnp.float32) for bias in (call.bias, call.diagonals) if bias is not None]
    extra = list(biases)
    # A rate may be too small to drop anything; the library reads 0 as no dropout, and then takes no bits.
    drop_below = drop_threshold(call.dropout_rate)
    if drop_below:
        extra += [call.row_bits, call.column_bits]
    run = functools.partial(
        jax.ffi.ffi_call(name, results),
        rate=np.float32(rate(call)),
        score_scale=np.float32(call.scale),  # where the call is not plain
        soft_cap=np.float32(call.soft_cap or 0),
        query_factor=np.float32(call.scale),
        key_factor=np.float32(abs(call.scale) if call.is_plain else call.scale),  # the query has its sign
        keep_factor=np.float32(1 / (1 - call.dropout_rate)),
        drop_below=np.int64(drop_below),
        has_bias=np.int64(len(biases)),
        has_diagonals=np.int64(call.diagonals is not None),
        has_lse_gradient=np.int64(name != "jaxattn_forward" and len(arrays) == 8),
        batch=np.array(call.batch, np.int64),
        mask=np.array(code.operations, np.int64).ravel(),
    )
    # Inside `jax.shard_map` the results vary as the arguments do, which JAX cannot infer for a foreign call.
    return vary_alike((run(*arrays, *extra, *code.arrays), arrays))[0]
