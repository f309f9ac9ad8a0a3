"""`torch.nn.MultiheadAttention`, whose query, key and value weights are stacked in one matrix where they can be."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxattn.models.convert.tensors import PROJECTIONS, Params, Tensors, check_names


def from_torch(state_dict: Mapping[str, Any]) -> Params:
    """Convert the weights of a `torch.nn.MultiheadAttention` into parameters of `AttentionLayer(use_bias=True)`.

    Args:
        state_dict: `module.state_dict()`.

    Returns:
        Parameters for `AttentionLayer` or `MultiHeadAttention`; a missing output bias becomes zeros.

    Raises:
        ValueError: a tensor is missing, left over (`bias_k` and `bias_v` have no counterpart), or of the wrong shape or
            type.

    Example:
        >>> import numpy as np
        >>> from jaxattn.models.convert import from_torch
        >>> params = from_torch({"in_proj_weight": np.ones((12, 4)), "out_proj.weight": np.ones((4, 4))})
        >>> params["key"]["kernel"].shape
        (4, 4)
    """
    tensors = Tensors(state_dict)
    if "in_proj_weight" in tensors:
        stacked = tensors.take("in_proj_weight", (None, None))
        if stacked.shape[0] != 3 * stacked.shape[1]:
            raise ValueError(f"in_proj_weight has shape {stacked.shape}, but must be (3 * width, width)")
        weights = np.split(stacked, 3)
    else:
        weights = [tensors.take(f"{letter}_proj_weight", (None, None)) for letter in "qkv"]
    params: Params = {
        name: {"kernel": jnp.asarray(weight.T)} for name, weight in zip(PROJECTIONS, weights, strict=True)
    }
    width = weights[0].shape[0]
    if "in_proj_bias" in tensors:
        biases = np.split(tensors.take("in_proj_bias", (3 * width,)), 3)
        for name, bias in zip(PROJECTIONS, biases, strict=True):
            params[name]["bias"] = jnp.asarray(bias)
    kernel = jnp.asarray(tensors.take("out_proj.weight", (width, width)).T)
    zeros = np.zeros(width, kernel.dtype)
    bias = tensors.take("out_proj.bias", (width,)) if "out_proj.bias" in tensors else zeros
    params["out"] = {"kernel": kernel, "bias": jnp.asarray(bias)}
    tensors.finish()
    return params


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert parameters of `MultiHeadAttention` or `AttentionLayer` into those of a `torch.nn.MultiheadAttention`.

    The arrays are copies. Where only some projections have a bias, the others get zeros.

    Raises:
        ValueError: a parameter is missing or unknown, or there are fewer KV heads than query heads.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import MultiHeadAttention
        >>> from jaxattn.models.convert import to_torch
        >>> params = MultiHeadAttention(2, 4, use_bias=True).init(jax.random.key(0), jnp.ones((5, 4)))["params"]
        >>> {name: array.shape for name, array in to_torch(params).items()}["in_proj_weight"]
        (12, 4)
    """
    check_names(params, (*PROJECTIONS, "out"))
    weights = [np.asarray(params[name]["kernel"]).T for name in PROJECTIONS]
    if len({weight.shape[0] for weight in weights}) > 1:
        raise ValueError("torch.nn.MultiheadAttention has as many KV heads as query heads, and these have fewer")
    if len({weight.shape[1] for weight in weights}) > 1:
        tensors = {f"{letter}_proj_weight": weight.copy() for letter, weight in zip("qkv", weights, strict=True)}
    else:
        tensors = {"in_proj_weight": np.concatenate(weights)}
    has_biases = any("bias" in params[name] for name in PROJECTIONS)
    if has_biases:
        tensors["in_proj_bias"] = np.concatenate([_bias(params[name]) for name in PROJECTIONS])
    tensors["out_proj.weight"] = np.asarray(params["out"]["kernel"]).T.copy()
    if has_biases or "bias" in params["out"]:
        tensors["out_proj.bias"] = _bias(params["out"])
    return tensors


def _bias(dense: Mapping[str, Any]) -> np.ndarray:
    """Return a copy of a bias, or zeros where there is none, because the layer has all biases or none."""
    if "bias" in dense:
        return np.array(dense["bias"])
    kernel = np.asarray(dense["kernel"])
    return np.zeros(kernel.shape[-1], kernel.dtype)
