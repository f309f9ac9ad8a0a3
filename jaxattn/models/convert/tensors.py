"""Tensors and parameters by name, checked."""

from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

Params = dict[str, Any]
PROJECTIONS = ("query", "key", "value")
FLOATING = ("float64", "float32", "float16", "bfloat16")


class Tensors:
    """The tensors of a `state_dict`, taken one by one with their shape checked, until none is left.

    Args:
        tensors: torch tensors or NumPy arrays by name.
        ignored: last parts of names to leave out.
    """

    def __init__(self, tensors: Mapping[str, Any], ignored: tuple[str, ...] = ()) -> None:
        self._left = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] not in ignored}

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def names(self) -> list[str]:
        """List the tensors that are left."""
        return list(self._left)

    def part(self, prefix: str) -> "Tensors":
        """Remove and return the tensors whose names begin with a prefix, without it."""
        names = [name for name in self._left if name.startswith(prefix)]
        return Tensors({name.removeprefix(prefix): self._left.pop(name) for name in names})

    def take(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """Remove and return a tensor of a shape in which None is any size.

        Raises:
            ValueError: the tensor is missing, or has another shape or type.
        """
        if name not in self._left:
            others = ", ".join(sorted(self._left)[:4]) or "nothing"
            raise ValueError(f"the tensor {name} is missing; left are {others}")
        array = _as_numpy(name, self._left.pop(name))
        fits = [size in (None, actual) for size, actual in zip(shape, array.shape, strict=False)]
        if array.ndim != len(shape) or not all(fits):
            expected = "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
            raise ValueError(f"the tensor {name} has shape {array.shape}, but must be {expected}")
        return array

    def discard(self, name: str) -> None:
        """Remove a tensor that is no parameter, if there is one."""
        self._left.pop(name, None)

    def finish(self) -> None:
        """Check that no tensor is left.

        Raises:
            ValueError: one is left.
        """
        if self._left:
            raise ValueError(
                f"the tensor {sorted(self._left)[0]} has no counterpart here ({len(self._left)} left over)"
            )


def _as_numpy(name: str, tensor: Any) -> np.ndarray:
    if not hasattr(tensor, "detach"):
        array = np.asarray(tensor)
        check_floating(f"the tensor {name}", array.dtype)
        return array
    dtype = str(tensor.dtype).removeprefix("torch.")
    check_floating(f"the tensor {name}", dtype)
    tensor = tensor.detach().cpu()
    if dtype == "bfloat16":  # which PyTorch does not hand to NumPy; every such number is a float32 too
        return np.asarray(tensor.float().numpy()).astype(jnp.bfloat16)
    return np.asarray(tensor.numpy())


def check_floating(name: str, dtype: Any) -> None:
    """Check that parameters have a floating-point type of 16 bits or more, which needs no scales.

    Raises:
        ValueError: they do not.
    """
    if str(dtype) not in FLOATING:
        raise ValueError(
            f"{name} has type {dtype}, but must be {', '.join(FLOATING[:-1])} or {FLOATING[-1]}: quantized "
            "numbers need their scales, so convert them first"
        )


def check_names(params: Mapping[str, Any], required: Collection[str], optional: Collection[str] = ()) -> None:
    """Check that all required parameters are there, and no unknown ones: kernels with or without biases, and scales.

    Raises:
        ValueError: a parameter is missing or unknown.
    """
    for name in required:
        if name not in params:
            raise ValueError(f"the parameter {name} is missing; there are {', '.join(sorted(params)) or 'none'}")
    for name in params:
        if name not in required and name not in optional:
            raise ValueError(f"the parameter {name} has no counterpart there")
        leaves = set(params[name]) if isinstance(params[name], Mapping) else set()
        needed, allowed = ("scale", {"scale"}) if name.endswith(("_norm", "_ln")) else ("kernel", {"kernel", "bias"})
        if needed not in leaves:
            raise ValueError(
                f"the parameter {name}/{needed} is missing; there are {', '.join(sorted(leaves)) or 'none'}"
            )
        if leaves - allowed:
            raise ValueError(f"the parameter {name}/{min(leaves - allowed)} has no counterpart there")
