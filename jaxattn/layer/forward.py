"""One call of a layer, step by step: project, normalize, rotate, remember, attend, project. Linen and NNX share it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxattn.attention import attend, attend_with_steps
from jaxattn.kernels.call import checked_call
from jaxattn.layer.call import Call, check_ring, checked
from jaxattn.layer.decoding import Storage, extend, kept_context, masked_missing, stored
from jaxattn.layer.heads import RelativeBias, Sizes, rotary_of, sizes
from jaxattn.masks import combine
from jaxattn.ring import ring_attention, zigzag_order
from jaxattn.rotary import rotate


class Face(NamedTuple):
    """What a module of Linen or NNX gives the rules, besides its fields."""

    project: Callable[[str, Array], Array]  # by the dense layer of this name
    normalize: Callable[[str, Array], Array]  # by the normalization of this name
    parameter: Callable[[str], Array]  # the bare parameter of this name
    storage: Storage
    sow_steps: Callable[..., None] | None = None  # keeps the steps of attention, where they are collected


def forward(layer: Any, face: Face, x: Any, call: Call) -> Array | tuple[Array, Array]:
    """Compute a layer's output `(..., T, out_features)`, and its weights `(..., H, T, S)` if the call asks for them."""
    x, call = checked(layer, x, call)
    size = sizes(layer)
    query = _heads(layer, face, "query", x, size.H)  # (..., T, H, D)
    key, value = _keys_and_values(layer, face, x, call, size)  # (..., S, K, D)
    cache = stored(layer, face.storage, key, value) if call.decode else None
    rotary = rotary_of(layer)
    if rotary is not None:
        positions = _positions_in_ring(layer, x) if call.positions is None else call.positions
        positions = token_positions(x, None if cache is None else cache.length, positions)
        query, key = (rotate(heads, positions, rotary) for heads in (query, key))
    mask, is_whole = combine(layer.mask, call.mask), None
    offset: int | Array = 0
    if cache is not None:
        key, value, mask, offset, is_whole = extend(layer, face.storage, cache, key, value, call.mask, call.lengths)
    context, weights = _attend(layer, face, (query, key, value), mask, offset, call)
    # (..., T, H, D) -> (..., T, out_features)
    output = masked_missing(face.project("out", context.reshape(*x.shape[:-1], size.H * size.D)), is_whole)
    return output if weights is None else (output, masked_missing(weights, is_whole))


def _positions_in_ring(layer: Any, x: Array) -> Any:
    """Return the positions of tokens in zig-zag order, or None for natural order."""
    ring = layer.ring
    in_natural_order = ring is None or ring.order == "natural"
    return None if in_natural_order else zigzag_order(x.shape[-2], ring.mesh.shape[ring.axis])


def token_positions(x: Array, cached: Array | None, positions: Any) -> Array:
    """Return the position of each token `(..., T)`: those given, or from the end of the cache on, or from 0."""
    if positions is not None:
        return jnp.asarray(positions)
    places = jnp.arange(x.shape[-2], dtype=jnp.int32)
    return places if cached is None else cached[..., None] + places.reshape((1,) * cached.ndim + (-1,))


def _heads(layer: Any, face: Face, name: str, x: Array, heads: int) -> Array:
    """Project, split and normalize: (..., T, d_in) -> (..., T, heads, D)."""
    projected = face.project(name, x)
    split = projected.reshape(*x.shape[:-1], heads, projected.shape[-1] // heads)
    return face.normalize(f"{name}_norm", split) if layer.normalize_heads and name != "value" else split


def _keys_and_values(layer: Any, face: Face, x: Array, call: Call, size: Sizes) -> tuple[Array, Array]:
    """Return the keys and values of the tokens, or of the context."""
    if call.keep_context and call.context is None:
        return kept_context(face.storage, None)
    source = x if call.context is None else call.context
    heads = _heads(layer, face, "key", source, size.K), _heads(layer, face, "value", source, size.K)
    return kept_context(face.storage, heads) if call.keep_context else heads


def _attend(
    layer: Any, face: Face, heads: tuple[Array, Array, Array], mask: Any, offset: Any, call: Call
) -> tuple[Array, Array | None]:
    """Return the context `(..., T, H, D)`, and the weights if the call asks for them."""
    if layer.ring is not None:
        check_ring(call, face.sow_steps is not None)
    options = {
        **_score_options(layer, face, offset),
        "dropout_rate": 0.0 if call.dropout_key is None else layer.dropout_rate,
        "dropout_key": call.dropout_key,
        "precision": layer.precision,
    }
    if layer.ring is not None:
        ring: dict[str, Any] = {**layer.ring._asdict(), **options}
        query, key, value = heads
        context: Any = ring_attention(query, key, value, mask, **ring)
        return context, None
    options["implementation"] = layer.implementation
    if face.sow_steps is not None:
        face.sow_steps(*heads, mask, **options)
    if call.return_weights:
        _, weights, _, context = attend_with_steps(checked_call(*heads, mask, return_weights=True, **options))
        return context, weights
    return attend(checked_call(*heads, mask, **options)), None


def _score_options(layer: Any, face: Face, offset: Any) -> dict[str, Any]:
    """What the fields change in the scores."""
    options: dict[str, Any] = {}
    if layer.scale is not None:
        options["scale"] = layer.scale
    if layer.soft_cap is not None:
        options["soft_cap"] = layer.soft_cap
    if layer.use_sinks:
        options["sinks"] = face.parameter("sinks")
    if layer.position_bias is not None:
        options["bias"] = _position_bias(layer, face, offset)
    return options


def _position_bias(layer: Any, face: Face, offset: Any) -> Any:
    from jaxattn.biases import Alibi, Relative

    kind = layer.position_bias
    if kind == "alibi":
        return Alibi.for_heads(layer.num_heads, offset)
    if isinstance(kind, RelativeBias):
        table = face.parameter("relative_bias")
        return Relative(table, bidirectional=kind.bidirectional, max_distance=kind.max_distance, offset=offset)
    raise ValueError(f"position_bias={kind!r} must be None, 'alibi' or RelativeBias(num_buckets=32)")
