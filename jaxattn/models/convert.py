"""Weights in and out: between this library's layers and other people's, as plain dictionaries of arrays.

`from_…` makes parameters for this library, `to_…` makes what the other side calls its weights; one undoes the other.
Nothing here needs PyTorch: a `state_dict` is a dictionary of tensors or of NumPy arrays.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

Params = dict[str, Any]
_HEADS = ("query", "key", "value")


def from_book(state_dict: Mapping[str, Any]) -> Params:
    """Turn the weights of a class of the book's chapter 3 into parameters of the stage that corresponds.

    Args:
        state_dict: `module.state_dict()` of `SelfAttention_v1`, `SelfAttention_v2`, `CausalAttention`,
            `MultiHeadAttentionWrapper` or `MultiHeadAttention`, of tensors or NumPy arrays.

    Returns:
        Parameters for `SelfAttention`, `CausalAttention`, `MultiHeadAttentionWrapper` or `MultiHeadAttention`.

    Raises:
        ValueError: a tensor is missing, is none of theirs, or has another shape; it is named.

    Example:
        >>> import numpy as np
        >>> from jaxattn.models.convert import from_book
        >>> v2 = {f"W_{name}.weight": np.ones((2, 3)) for name in ("query", "key", "value")}
        >>> from_book(v2)["query"]["kernel"].shape
        (3, 2)

    References:
        Build a Large Language Model (From Scratch), sections 3.4 to 3.6.
    """
    tensors = Tensors(state_dict, ignored=("mask",))
    if tensors.names() and all(name.startswith("heads.") for name in tensors.names()):
        numbers = sorted({int(name.split(".")[1]) for name in tensors.names() if name.split(".")[1].isdigit()})
        params: Params = {f"heads_{i}": _from_book_head(tensors, f"heads.{i}.") for i in numbers}
    else:
        params = _from_book_head(tensors, "")
        if tensors.has("out_proj.weight"):
            features = params["value"]["kernel"].shape[1]
            params["out"] = {
                "kernel": tensors.take("out_proj.weight", (features, features)).T,
                "bias": tensors.take("out_proj.bias", (features,)),
            }
    tensors.finish()
    return params


def to_book(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Turn parameters of a stage into the book's `state_dict`, but for the causal mask, which is no weight.

    Load them with `module.load_state_dict({name: torch.from_numpy(array) ...}, strict=False)`. The stages without
    heads come out as `SelfAttention_v2` and `CausalAttention` name them.

    Args:
        params: parameters of `SelfAttention`, `CausalAttention`, `MultiHeadAttentionWrapper` or `MultiHeadAttention`.

    Returns:
        NumPy arrays by the names that the book's modules give them.

    Raises:
        ValueError: a parameter is missing or is none of theirs.

    Example:
        >>> import numpy as np
        >>> from jaxattn.models.convert import to_book
        >>> sorted(to_book({name: {"kernel": np.ones((3, 2))} for name in ("query", "key", "value")}))
        ['W_key.weight', 'W_query.weight', 'W_value.weight']
    """
    if params and all(name.startswith("heads_") for name in params):
        return {
            f"heads.{name.removeprefix('heads_')}.{inner}": array
            for name, head in params.items()
            for inner, array in to_book(head).items()
        }
    names = {"query": "W_query", "key": "W_key", "value": "W_value", "out": "out_proj"}
    _check_names(params, names, optional=("out",))
    tensors = {}
    for name, dense in params.items():
        tensors[f"{names[name]}.weight"] = np.asarray(dense["kernel"]).T.copy()
        if "bias" in dense:
            tensors[f"{names[name]}.bias"] = np.asarray(dense["bias"])
    return tensors


def from_linen(params: Mapping[str, Any]) -> Params:
    """Turn the parameters of Flax's multi-head layers, Linen's or NNX's, into those of `AttentionLayer`.

    Args:
        params: `variables["params"]` of `flax.linen.MultiHeadDotProductAttention`, or, from NNX,
            `nnx.to_pure_dict(nnx.state(layer, nnx.Param))` of a `flax.nnx.MultiHeadAttention`.

    Returns:
        Parameters for `AttentionLayer` and, where queries and keys are not normalised, `MultiHeadAttention`. A missing
        bias of the output projection comes out as zeros.

    Raises:
        ValueError: a parameter is missing, is none of theirs, or has another shape.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from jaxattn.models.convert import from_linen
        >>> variables = nn.MultiHeadDotProductAttention(num_heads=2).init(jax.random.key(0), jnp.ones((5, 4)))
        >>> from_linen(variables["params"])["out"]["kernel"].shape
        (4, 4)
    """
    _check_names(params, (*_HEADS, "out", "query_ln", "key_ln"), optional=("query_ln", "key_ln"))
    converted: Params = {}
    for name in _HEADS:
        kernel = _of_rank(f"{name}/kernel", params[name]["kernel"], 3)
        converted[name] = {"kernel": kernel.reshape(kernel.shape[0], -1)}
        if _has(params[name], "bias"):
            converted[name]["bias"] = _of_rank(f"{name}/bias", params[name]["bias"], 2).reshape(-1)
    kernel = _of_rank("out/kernel", params["out"]["kernel"], 3)
    bias = params["out"]["bias"] if _has(params["out"], "bias") else jnp.zeros(kernel.shape[-1], kernel.dtype)
    converted["out"] = {"kernel": kernel.reshape(-1, kernel.shape[-1]), "bias": jnp.asarray(bias)}
    for name in ("query", "key"):
        if f"{name}_ln" in params:
            converted[f"{name}_norm"] = {"scale": jnp.asarray(params[f"{name}_ln"]["scale"])}
    return converted


def to_linen(params: Mapping[str, Any], num_heads: int) -> Params:
    """Turn the parameters of `MultiHeadAttention` or `AttentionLayer` into those of Flax's layers; undoes `from_linen`.

    Args:
        params: the parameters.
        num_heads: how many query heads they belong to.

    Returns:
        A dictionary for `variables["params"]` in Linen, or `nnx.replace_by_pure_dict` in NNX.

    Raises:
        ValueError: a parameter is missing, is none of theirs, or is not divisible into the heads.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import MultiHeadAttention
        >>> from jaxattn.models.convert import to_linen
        >>> params = MultiHeadAttention(2, 4).init(jax.random.key(0), jnp.ones((5, 3)))["params"]
        >>> to_linen(params, num_heads=2)["query"]["kernel"].shape
        (3, 2, 2)
    """
    _check_names(params, (*_HEADS, "out", "query_norm", "key_norm"), optional=("query_norm", "key_norm"))
    features = params["query"]["kernel"].shape[-1]
    if num_heads < 1 or features % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide the {features} features of query/kernel")
    width = features // num_heads
    converted: Params = {}
    for name in _HEADS:
        converted[name] = {
            part: jnp.asarray(array).reshape(*array.shape[:-1], -1, width) for part, array in params[name].items()
        }
    out = params["out"]
    converted["out"] = {**out, "kernel": jnp.asarray(out["kernel"]).reshape(num_heads, width, -1)}
    for name in ("query", "key"):
        if f"{name}_norm" in params:
            converted[f"{name}_ln"] = dict(params[f"{name}_norm"])
    return converted


def from_torch(state_dict: Mapping[str, Any]) -> Params:
    """Turn the weights of a `torch.nn.MultiheadAttention` into parameters of `AttentionLayer(use_bias=True)`.

    Args:
        state_dict: `module.state_dict()`, of tensors or NumPy arrays.

    Returns:
        Parameters for `AttentionLayer` or `MultiHeadAttention`; a missing output bias comes out as zeros.

    Raises:
        ValueError: a tensor is missing, is none of theirs (`bias_k` and `bias_v` have no counterpart), or has another
            shape.

    Example:
        >>> import numpy as np
        >>> from jaxattn.models.convert import from_torch
        >>> params = from_torch({"in_proj_weight": np.ones((12, 4)), "out_proj.weight": np.ones((4, 4))})
        >>> params["key"]["kernel"].shape
        (4, 4)
    """
    tensors = Tensors(state_dict)
    if tensors.has("in_proj_weight"):
        stacked = tensors.take("in_proj_weight", (None, None))
        if stacked.shape[0] != 3 * stacked.shape[1]:
            raise ValueError(f"in_proj_weight has shape {stacked.shape}, but must be (3 * width, width)")
        weights = np.split(stacked, 3)
    else:
        weights = [tensors.take(f"{letter}_proj_weight", (None, None)) for letter in "qkv"]
    params: Params = {name: {"kernel": jnp.asarray(w.T)} for name, w in zip(_HEADS, weights, strict=True)}
    width = weights[0].shape[0]
    if tensors.has("in_proj_bias"):
        for name, bias in zip(_HEADS, np.split(tensors.take("in_proj_bias", (3 * width,)), 3), strict=True):
            params[name]["bias"] = jnp.asarray(bias)
    kernel = jnp.asarray(tensors.take("out_proj.weight", (width, width)).T)
    zeros = np.zeros(width, kernel.dtype)
    bias = tensors.take("out_proj.bias", (width,)) if tensors.has("out_proj.bias") else zeros
    params["out"] = {"kernel": kernel, "bias": jnp.asarray(bias)}
    tensors.finish()
    return params


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Turn parameters of `MultiHeadAttention` or `AttentionLayer` into the weights of a `torch.nn.MultiheadAttention`.

    Args:
        params: the parameters, with as many key heads as query heads.

    Returns:
        NumPy arrays by the names that torch gives them.

    Raises:
        ValueError: a parameter is missing or has no counterpart there.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import MultiHeadAttention
        >>> from jaxattn.models.convert import to_torch
        >>> params = MultiHeadAttention(2, 4, use_bias=True).init(jax.random.key(0), jnp.ones((5, 4)))["params"]
        >>> {name: array.shape for name, array in to_torch(params).items()}["in_proj_weight"]
        (12, 4)
    """
    _check_names(params, (*_HEADS, "out"))
    kernels = [np.asarray(params[name]["kernel"]).T for name in _HEADS]
    if len({kernel.shape[0] for kernel in kernels}) > 1:
        raise ValueError("torch.nn.MultiheadAttention has as many key heads as query heads, and these have fewer")
    if len({kernel.shape[1] for kernel in kernels}) > 1:
        tensors = {f"{letter}_proj_weight": kernel.copy() for letter, kernel in zip("qkv", kernels, strict=True)}
    else:
        tensors = {"in_proj_weight": np.concatenate(kernels)}
    if "bias" in params["query"]:
        tensors["in_proj_bias"] = np.concatenate([np.asarray(params[name]["bias"]) for name in _HEADS])
    tensors["out_proj.weight"] = np.asarray(params["out"]["kernel"]).T.copy()
    tensors["out_proj.bias"] = np.asarray(params["out"]["bias"])
    return tensors


class Tensors:
    """Someone's tensors by name: taken one by one with their shape checked, until none is left."""

    def __init__(self, tensors: Mapping[str, Any], ignored: tuple[str, ...] = ()) -> None:
        self.left = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] not in ignored}

    def names(self) -> list[str]:
        """Return what is left."""
        return list(self.left)

    def has(self, name: str) -> bool:
        """Say whether a tensor is left."""
        return name in self.left

    def take(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """Return a tensor of that shape, where None is any number, or raise a ValueError that names it."""
        if name not in self.left:
            near = ", ".join(sorted(self.left)[:4]) or "nothing"
            raise ValueError(f"the tensor {name} is missing; left are {near}")
        tensor = self.left.pop(name)
        array = np.asarray(tensor.detach().cpu().numpy() if hasattr(tensor, "detach") else tensor)
        if array.ndim != len(shape) or any(
            want not in (None, came) for want, came in zip(shape, array.shape, strict=False)
        ):
            wanted = "(" + ", ".join("any" if want is None else str(want) for want in shape) + ")"
            raise ValueError(f"the tensor {name} has shape {array.shape}, but must be {wanted}")
        return array

    def finish(self) -> None:
        """Raise a ValueError where something is left over."""
        if self.left:
            raise ValueError(f"the tensor {sorted(self.left)[0]} has no counterpart here ({len(self.left)} left over)")


def _from_book_head(tensors: Tensors, prefix: str) -> Params:
    params: Params = {}
    features = None
    for name in _HEADS:
        if tensors.has(f"{prefix}W_{name}"):
            kernel = tensors.take(f"{prefix}W_{name}", (None, features))
        else:
            kernel = tensors.take(f"{prefix}W_{name}.weight", (features, None)).T
        features = kernel.shape[1]
        params[name] = {"kernel": jnp.asarray(kernel)}
        if tensors.has(f"{prefix}W_{name}.bias"):
            params[name]["bias"] = jnp.asarray(tensors.take(f"{prefix}W_{name}.bias", (features,)))
    return params


def _check_names(params: Mapping[str, Any], allowed: Any, optional: tuple[str, ...] = ()) -> None:
    for name in allowed:
        if name not in params and name not in optional:
            raise ValueError(f"the parameter {name} is missing; there are {', '.join(sorted(params)) or 'none'}")
    for name in params:
        if name not in allowed:
            raise ValueError(f"the parameter {name} has no counterpart there")


def _of_rank(name: str, array: Any, rank: int) -> Any:
    array = jnp.asarray(array)
    if array.ndim != rank:
        raise ValueError(f"the parameter {name} has shape {array.shape}, but must have {rank} axes")
    return array


def _has(params: Mapping[str, Any], name: str) -> bool:
    return params.get(name) is not None
