"""What the NNX modules share: projections, normalization, dropout keys, and how they keep a cache."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from jaxattn.checks import check_rate
from jaxattn.kernels import dense
from jaxattn.kernels.call import checked_call
from jaxattn.layer.decoding import Storage
from jaxattn.layer.heads import HeadNorm, normalized, parameter_init
from jaxattn.masks import Mask

Keys = nnx.Rngs | nnx.RngStream | Array | None


class Norm(nnx.Module):
    """Normalizes the last axis, with a learned scale."""

    def __init__(self, width: int, kind: HeadNorm, epsilon: float, scale_init: Any, param_dtype: Any, rngs: nnx.Rngs):
        self.scale = nnx.Param(scale_init(rngs.params(), (width,), param_dtype))
        self.kind, self.epsilon = kind, epsilon

    def __call__(self, vectors: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
        """Normalize."""
        return normalized(vectors, self.scale[...], self.kind, self.epsilon)


class DroppingModule(nnx.Module):
    """The base of modules with dropout and a cache: which keys drop, and what `nnx.view` sets."""

    deterministic: bool
    dropout_rate: float
    dropout: Any  # a stream of keys, or None

    def set_view(self, deterministic: bool | None = None) -> None:
        """Set what `nnx.view` was given, in its copy of the module; `nnx.view_info` reads this, with two spaces.

        Args:
          deterministic: True turns dropout off.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def _dropout_key(self, deterministic: bool | None, rngs: Keys) -> Array | None:
        # The attributes may have been set since, by `set_attributes`.
        if check_rate(self.dropout_rate) == 0 or (self.deterministic if deterministic is None else deterministic):
            return None
        stream = self.dropout if rngs is None else rngs
        if stream is None:
            raise ValueError(
                "dropout is on, but the module was made with dropout_rate=0 and has no keys: write "
                "layer(x, rngs=nnx.Rngs(dropout=0))"
            )
        if isinstance(stream, nnx.Rngs):
            stream = stream.dropout
        return stream() if isinstance(stream, nnx.RngStream) else stream


def as_attribute(mask: Mask | None) -> Mask | None:
    """Return a mask as NNX allows it in a module: one with arrays, such as lengths, is data and not static."""
    has_arrays = any(isinstance(leaf, Array | np.ndarray) for leaf in jax.tree.leaves(mask))
    return nnx.data(mask) if has_arrays else mask


def nnx_dense(layer: Any, name: str, in_features: int, features: int, use_bias: bool, rngs: nnx.Rngs) -> nnx.Linear:
    """Return a dense layer that computes in the type of the vectors, as those of the Linen modules do."""
    return nnx.Linear(
        in_features,
        features,
        use_bias=use_bias,
        param_dtype=layer.param_dtype,
        precision=layer.precision,
        kernel_init=parameter_init(layer, f"{name}/kernel"),
        bias_init=parameter_init(layer, f"{name}/bias"),
        promote_dtype=_to_type_of_vectors,
        rngs=rngs,
    )


def nnx_project(layer: Any, name: str, x: Array) -> Array:
    """Project vectors by a dense layer of a module, of the width that it was made for."""
    dense = getattr(layer, name)
    if x.shape[-1] != dense.in_features:
        raise ValueError(
            f"{name} projects vectors of width {dense.in_features}, but these have {x.shape[-1]}: make the layer with "
            f"in_features={x.shape[-1]}, or context_features for those of a context"
        )
    projected: Array = dense(x)
    return projected


def _to_type_of_vectors(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    dtype = arrays[0].dtype if dtype is None else dtype
    return tuple(None if array is None else array.astype(dtype) for array in arrays)


def nnx_storage(module: Any) -> Storage:
    """Return how an NNX module keeps arrays between calls: in `nnx.Cache` variables below `module.cache`."""

    def read(*names: str) -> tuple[Array, ...] | None:
        cache = getattr(module, "cache", None)
        if cache is None or names[0] not in cache:
            return None
        return tuple(cache[name][...] for name in names)

    def write(**arrays: Array) -> None:
        if getattr(module, "cache", None) is None:
            module.cache = nnx.Dict()
        for name, array in arrays.items():
            held = module.cache.get(name)
            if held is not None and (held.shape, held.dtype) == (array.shape, array.dtype):
                module.cache[name][...] = array
            else:
                module.cache[name] = nnx.Cache(array)

    return Storage(read, write)


def steps_sower(module: nnx.Module) -> Callable[..., None] | None:
    """Return what keeps the steps of attention in a module, where `nnx.capture` collects intermediates, or None."""
    captured = getattr(module, "__captures__", ())
    is_collected = any(type(variable) is nnx.Intermediate for variable in captured)
    return functools.partial(_sow_steps, module) if is_collected else None


def _sow_steps(module: nnx.Module, query: Array, key: Array, value: Array, mask: Any, **options: Any) -> None:
    steps = dense.attend(checked_call(query, key, value, mask, **options))
    for name, step in {"queries": query, "keys": key, "values": value, **steps._asdict()}.items():
        module.sow(nnx.Intermediate, name, step)
