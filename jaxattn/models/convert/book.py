"""The PyTorch classes of the book's chapter 3.

References:
    Build a Large Language Model (From Scratch), sections 3.4 to 3.6.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxattn.models.convert.tensors import PROJECTIONS, Params, Tensors, check_names


def from_book(state_dict: Mapping[str, Any]) -> Params:
    """Convert the weights of one of the book's classes into parameters of the corresponding stage.

    Args:
        state_dict: `module.state_dict()` of `SelfAttention_v1`, `SelfAttention_v2`, `CausalAttention`,
            `MultiHeadAttentionWrapper` or `MultiHeadAttention`.

    Returns:
        Parameters for `SelfAttention`, `CausalAttention`, `MultiHeadAttentionWrapper` or `MultiHeadAttention`.

    Raises:
        ValueError: a tensor is missing, left over, or of the wrong shape or type.

    Example:
        >>> import numpy as np
        >>> from jaxattn.models.convert import from_book
        >>> v2 = {f"W_{name}.weight": np.ones((2, 3)) for name in ("query", "key", "value")}
        >>> from_book(v2)["query"]["kernel"].shape
        (3, 2)
    """
    tensors = Tensors(state_dict, ignored=("mask",))  # the causal mask is no parameter
    if tensors.names() and all(name.startswith("heads.") for name in tensors.names()):
        numbers = sorted({int(name.split(".")[1]) for name in tensors.names() if name.split(".")[1].isdigit()})
        params: Params = {f"heads_{number}": _head(tensors, f"heads.{number}.") for number in numbers}
    else:
        params = _head(tensors, "")
        if "out_proj.weight" in tensors:
            features = params["value"]["kernel"].shape[1]
            params["out"] = {
                "kernel": tensors.take("out_proj.weight", (features, features)).T,
                "bias": tensors.take("out_proj.bias", (features,)),
            }
    tensors.finish()
    return params


def to_book(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert parameters of a stage into the book's `state_dict`, without the causal mask.

    Load them with `module.load_state_dict({name: torch.from_numpy(array) ...}, strict=False)`; bfloat16, which PyTorch
    does not take from NumPy, with `array.astype(np.float32)`. Single heads come out with the names of
    `SelfAttention_v2` and `CausalAttention`.

    Raises:
        ValueError: a parameter is missing or unknown.

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
    check_names(params, PROJECTIONS, optional=("out",))
    names = {"query": "W_query", "key": "W_key", "value": "W_value", "out": "out_proj"}
    tensors = {}
    for name, dense in params.items():
        tensors[f"{names[name]}.weight"] = np.asarray(dense["kernel"]).T.copy()
        if "bias" in dense:
            tensors[f"{names[name]}.bias"] = np.array(dense["bias"])
    return tensors


def _head(tensors: Tensors, prefix: str) -> Params:
    """Take the projections of one head: bare matrices (v1) or the weights of linear layers, which are transposed."""
    params: Params = {}
    features = None
    for name in PROJECTIONS:
        if f"{prefix}W_{name}" in tensors:
            kernel = tensors.take(f"{prefix}W_{name}", (None, features))
        else:
            kernel = tensors.take(f"{prefix}W_{name}.weight", (features, None)).T
        features = kernel.shape[1]
        params[name] = {"kernel": jnp.asarray(kernel)}
        if f"{prefix}W_{name}.bias" in tensors:
            params[name]["bias"] = jnp.asarray(tensors.take(f"{prefix}W_{name}.bias", (features,)))
    return params
