"""What the layers do to single heads, and the sizes of their parameters."""

import dataclasses
from typing import Any, Literal, NamedTuple

from jax import Array, lax
from jax.nn.initializers import Initializer, ones, zeros
from jaxtyping import Float

from jaxattn.checks import as_size, check_kv_heads, check_num_heads, features_per_head, wide_type
from jaxattn.rotary import Rotary

HeadNorm = Literal["layer", "rms", "rms_plus_one"]


@dataclasses.dataclass(frozen=True)
class RelativeBias:
    """T5's bias of the scores by distance, with a learned table `(num_buckets, H)`, see `biases.Relative`."""

    num_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = False


class Sizes(NamedTuple):
    """The sizes of a layer: H query heads and K KV heads of width D, and the width of the output."""

    H: int
    K: int
    D: int
    out: int

    @property
    def features(self) -> dict[str, int]:
        """The width of each projection's output."""
        return {"query": self.H * self.D, "key": self.K * self.D, "value": self.K * self.D, "out": self.out}


def sizes(layer: Any) -> Sizes:
    """Return the sizes of a layer; raise a ValueError where its fields do not fit each other."""
    for name in ("head_width", "out_features"):
        width = getattr(layer, name)
        if width is not None and as_size(name, width) < 1:
            raise ValueError(f"{name}={width} must be at least 1: write {name}=64, or None for the width of features")
    if layer.head_width is None:
        D = features_per_head(layer.num_heads, layer.features)
    else:
        check_num_heads(layer.num_heads)
        D = layer.head_width
    out = layer.features if layer.out_features is None else layer.out_features
    return Sizes(layer.num_heads, check_kv_heads(layer.num_heads, layer.num_kv_heads), D, out)


def rotary_of(layer: Any) -> Rotary | None:
    """Return how a layer rotates; `rotary_base` is short for `Rotary(base)`."""
    if getattr(layer, "rotary_base", None) is None:
        return layer.rotary
    if layer.rotary is not None:
        raise ValueError(
            f"rotary_base={layer.rotary_base} and rotary={layer.rotary} both say the base: write rotary alone"
        )
    return Rotary(layer.rotary_base)


def head_norm_of(layer: Any) -> HeadNorm | None:
    """Return how a layer normalizes heads; True is "layer"."""
    kind = {True: "layer", False: None}.get(layer.normalize_heads, layer.normalize_heads)
    if kind not in (None, "layer", "rms", "rms_plus_one"):
        raise ValueError(
            f"normalize_heads={kind!r} must be False, True or 'layer' (layer normalization), 'rms', or 'rms_plus_one'"
        )
    return kind


def normalized(vectors: Float[Array, "*shape D"], scale: Array, kind: HeadNorm, epsilon: float) -> Array:
    """Normalize the last axis, in float32 or wider, and multiply it by a learned scale `(D,)`."""
    wide = wide_type(vectors.dtype, scale.dtype)
    x, scale = vectors.astype(wide), scale.astype(wide).reshape((1,) * (vectors.ndim - 1) + (-1,))
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x * lax.rsqrt((x * x).mean(-1, keepdims=True) + epsilon)
    return (x * (1 + scale if kind == "rms_plus_one" else scale)).astype(vectors.dtype)


def initializer(layer: Any, path: str, default: Initializer) -> Initializer:
    """Return the initializer of the parameter at a path, "out/kernel" say."""
    return (layer.initializers or {}).get(path, default)


def parameter_paths(layer: Any) -> set[str]:
    """Return the paths of an attention layer's parameters."""
    paths = {f"{name}/kernel" for name in ("query", "key", "value", "out")}
    paths |= {f"{name}/bias" for name in ("query", "key", "value") if layer.use_bias}
    paths |= {"out/bias"} if layer.use_out_bias else set()
    paths |= {"query_norm/scale", "key_norm/scale"} if layer.normalize_heads else set()
    paths |= {"sinks"} if layer.use_sinks else set()
    return paths | ({"relative_bias"} if isinstance(layer.position_bias, RelativeBias) else set())


def check_initializers(layer: Any, paths: set[str]) -> None:
    """Check that `initializers` names parameters that the layer has."""
    unknown = sorted(set(layer.initializers or {}) - paths)
    if unknown:
        raise ValueError(f"initializers has {unknown}, but the parameters of this layer are {sorted(paths)}")


def default_initializer(layer: Any, path: str) -> Initializer:
    """Return what fills a parameter at first, unless `initializers` says it."""
    name = path.rpartition("/")[2]
    if name == "scale":
        return zeros if getattr(layer, "normalize_heads", None) == "rms_plus_one" else ones
    defaults = {"kernel": layer.kernel_init, "bias": layer.bias_init, "sinks": zeros, "relative_bias": zeros}
    return defaults[name]


def parameter_init(layer: Any, path: str) -> Initializer:
    """Return the initializer of the parameter at a path."""
    return initializer(layer, path, default_initializer(layer, path))
