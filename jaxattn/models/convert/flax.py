"""Flax's multi-head layers, Linen's and NNX's, whose kernels keep heads on an axis of their own."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxattn.models.convert.tensors import PROJECTIONS, Params, check_floating, check_names


def from_linen(params: Mapping[str, Any]) -> Params:
    """Convert the parameters of Flax's multi-head layers into those of `AttentionLayer`.

    Args:
        params: `variables["params"]` of `flax.linen.MultiHeadDotProductAttention`, or, from NNX,
            `nnx.to_pure_dict(nnx.state(layer, nnx.Param))` of a `flax.nnx.MultiHeadAttention`.

    Returns:
        Parameters for `AttentionLayer`, and for `MultiHeadAttention` unless queries and keys are normalized. A missing
        bias of the output projection becomes zeros.

    Raises:
        ValueError: a parameter is missing, unknown, or of the wrong rank or type.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from jaxattn.models.convert import from_linen
        >>> variables = nn.MultiHeadDotProductAttention(num_heads=2).init(jax.random.key(0), jnp.ones((5, 4)))
        >>> from_linen(variables["params"])["out"]["kernel"].shape
        (4, 4)
    """
    check_names(params, (*PROJECTIONS, "out"), optional=("query_ln", "key_ln"))
    converted: Params = {}
    for name in PROJECTIONS:
        kernel = _with_rank(f"{name}/kernel", params[name]["kernel"], 3)
        converted[name] = {"kernel": kernel.reshape(kernel.shape[0], -1)}  # (d_in, H, D) -> (d_in, H * D)
        if params[name].get("bias") is not None:
            converted[name]["bias"] = _with_rank(f"{name}/bias", params[name]["bias"], 2).reshape(-1)
    kernel, bias = _with_rank("out/kernel", params["out"]["kernel"], 3), params["out"].get("bias")
    if bias is None:
        bias = jnp.zeros(kernel.shape[-1], kernel.dtype)
    # (H, D, d_out) -> (H * D, d_out)
    converted["out"] = {"kernel": kernel.reshape(-1, kernel.shape[-1]), "bias": jnp.asarray(bias)}
    for name in ("query", "key"):
        if f"{name}_ln" in params:
            converted[f"{name}_norm"] = {"scale": jnp.asarray(params[f"{name}_ln"]["scale"])}
    return converted


def to_linen(params: Mapping[str, Any], num_heads: int) -> Params:
    """Convert the parameters of `MultiHeadAttention` or `AttentionLayer` into those of Flax's layers.

    Args:
        params: the parameters.
        num_heads: the number of query heads.

    Returns:
        A dictionary for `variables["params"]` in Linen, or `nnx.replace_by_pure_dict` in NNX.

    Raises:
        ValueError: a parameter is missing or unknown, or the heads do not divide the features.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import MultiHeadAttention
        >>> from jaxattn.models.convert import to_linen
        >>> params = MultiHeadAttention(2, 4).init(jax.random.key(0), jnp.ones((5, 3)))["params"]
        >>> to_linen(params, num_heads=2)["query"]["kernel"].shape
        (3, 2, 2)
    """
    check_names(params, (*PROJECTIONS, "out"), optional=("query_norm", "key_norm"))
    features = params["query"]["kernel"].shape[-1]
    if num_heads < 1 or features % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide the {features} features of query/kernel")
    D = features // num_heads
    converted: Params = {
        # (..., H * D) -> (..., H, D), of kernels and biases
        name: {leaf: jnp.asarray(array).reshape(*array.shape[:-1], -1, D) for leaf, array in params[name].items()}
        for name in PROJECTIONS
    }
    out = params["out"]
    converted["out"] = {**out, "kernel": jnp.asarray(out["kernel"]).reshape(num_heads, D, -1)}
    for name in ("query", "key"):
        if f"{name}_norm" in params:
            converted[f"{name}_ln"] = dict(params[f"{name}_norm"])
    return converted


def _with_rank(name: str, array: Any, rank: int) -> Array:
    array = jnp.asarray(array)
    check_floating(f"the parameter {name}", array.dtype)
    if array.ndim != rank:
        raise ValueError(f"the parameter {name} has shape {array.shape}, but must have {rank} axes")
    return array
