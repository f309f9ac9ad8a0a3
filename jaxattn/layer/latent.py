"""Latent attention: keys and values of all heads are projected from one short vector a token, which is what is cached.

    latent, rotary_key = split(kv_down(x))      (..., T, R) and (..., T, r): R the latent's width, r the rotated width
    latent             = rms_norm(latent)
    key_h              = [latent key_up_h, rotate(rotary_key)]        the rotated part is shared by all heads
    value_h            = latent value_up_h
    query_h            = [query_h, rotate(query's last r numbers)]

Decoding never builds the keys of earlier tokens: query_h · (latent key_up_h) = (query_h key_up_hᵀ) · latent, so the
query is projected instead, and all heads attend to one KV head of width R + r, whose value is the latent.

References:
    DeepSeek-AI 2024, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model", section 2.1.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxattn.attention import attend, attend_with_steps
from jaxattn.cache import Cache, check_continues
from jaxattn.checks import as_size
from jaxattn.kernels.call import checked_call
from jaxattn.layer.call import Call, checked
from jaxattn.layer.decoding import decoding_mask, masked_missing
from jaxattn.layer.forward import Face, token_positions
from jaxattn.masks import combine
from jaxattn.rotary import rotate


class LatentSizes(NamedTuple):
    """The widths of the parts of a head, and which projections there are."""

    H: int
    nope: int  # of queries and keys, not rotated
    rope: int  # of queries and keys, rotated
    value: int
    features: dict[str, int]  # the width of each projection's output
    normalized: dict[str, int]  # the width of each normalization


def latent_sizes(layer: Any) -> LatentSizes:
    """Return the sizes of a layer; raise a ValueError where a width is not positive."""
    value = layer.head_width if layer.value_width is None else layer.value_width
    widths = {
        "num_heads": layer.num_heads,
        "features": layer.features,
        "latent_width": layer.latent_width,
        "head_width": layer.head_width,
        "rotary_width": layer.rotary_width,
        "value_width": value,
        "query_width": 1 if layer.query_width is None else layer.query_width,
    }
    for name, width in widths.items():
        if as_size(name, width) < 1:
            raise ValueError(f"{name}={width} must be at least 1: write {name}=64")
    if layer.rotary_width % 2:
        raise ValueError(f"rotary_width={layer.rotary_width} must be even, for pairs: write {layer.rotary_width + 1}")
    H, query = layer.num_heads, layer.num_heads * (layer.head_width + layer.rotary_width)
    features, norms = {"query": query}, {"kv_norm": layer.latent_width}
    if layer.query_width is not None:
        features = {"query_down": layer.query_width, "query_up": query}
        norms |= {"query_norm": layer.query_width}
    features |= {"kv_down": layer.latent_width + layer.rotary_width, "key_up": H * layer.head_width}
    features |= {"value_up": H * value, "out": layer.features}
    return LatentSizes(H, layer.head_width, layer.rotary_width, value, features, norms)


def has_bias(layer: Any, name: str) -> bool:
    """Return whether a projection adds a bias: those from and to the token vectors, with `use_bias`."""
    return layer.use_bias and name in ("query_down", "kv_down", "out")


def latent_paths(layer: Any) -> set[str]:
    """Return the paths of a latent layer's parameters."""
    size = latent_sizes(layer)
    paths = {f"{name}/kernel" for name in size.features} | {f"{name}/scale" for name in size.normalized}
    return paths | {f"{name}/bias" for name in size.features if has_bias(layer, name)}


def latent_forward(layer: Any, face: Face, x: Any, call: Call) -> Array | tuple[Array, Array]:
    """Compute a latent layer's output `(..., T, features)`, and its weights `(..., H, T, S)` if the call asks."""
    x, call = checked(layer, x, call)
    size = latent_sizes(layer)
    query = face.project("query", x) if layer.query_width is None else _compressed_query(face, x)
    query = query.reshape(*x.shape[:-1], size.H, size.nope + size.rope)  # (..., T, H, nope + rope)
    latent, rotary_key = jnp.split(face.project("kv_down", x), [layer.latent_width], axis=-1)
    latent = face.normalize("kv_norm", latent)[..., None, :]  # (..., T, 1, R)
    cache = _stored(layer, face, x) if call.decode else None
    positions = token_positions(x, None if cache is None else cache.length, call.positions)
    rotary_key = rotate(rotary_key[..., None, :], positions, layer.rotary)  # (..., T, 1, rope)
    content, rotated = jnp.split(query, [size.nope], axis=-1)
    parts = content, rotate(rotated, positions, layer.rotary)
    if cache is None:
        heads, is_whole, mask = _expanded(layer, face, parts, latent, rotary_key), None, combine(layer.mask, call.mask)
    else:
        extended = cache if face.storage.is_empty else cache.append(rotary_key, latent, call.lengths)
        face.storage.write(**_by_name(extended))
        filled = None if call.lengths is None else extended.length
        mask = decoding_mask(layer.mask, call.mask, cache.length, x.shape[-2], filled)
        heads, is_whole = _absorbed(layer, face, parts, extended.value, extended.key), extended.is_whole
    context, weights = _attend(layer, heads, mask, call)  # (..., T, H, value), or (..., T, H, R)
    if cache is not None:
        context = _einsum(layer, "...hr,rhw->...hw", context, _kernel(layer, face, "value_up", context))
    joined = context.reshape(*x.shape[:-1], size.H * size.value)
    output = masked_missing(face.project("out", joined), is_whole)
    return output if weights is None else (output, masked_missing(weights, is_whole))


def _compressed_query(face: Face, x: Array) -> Array:
    return face.project("query_up", face.normalize("query_norm", face.project("query_down", x)))


def empty_latent_cache(layer: Any, batch: tuple[int, ...], dtype: Any) -> dict[str, Array]:
    """Return the arrays of an empty cache, by name."""
    if layer.cache_length is None:
        raise ValueError("a cache needs cache_length=... in the layer, the largest number of tokens in it")
    return _by_name(Cache.empty(*_no_tokens(layer, batch, dtype), layer.cache_length))


def _no_tokens(layer: Any, batch: tuple[int, ...], dtype: Any) -> tuple[Array, Array]:
    """Return the rotated keys and the latents of no tokens."""
    rotary_key, latent = (jnp.zeros((*batch, 0, 1, w), dtype) for w in (layer.rotary_width, layer.latent_width))
    return rotary_key, latent


def _by_name(cache: Cache) -> dict[str, Array]:
    return {"rotary_key": cache.key, "latent": cache.value, "length": cache.length}


def _stored(layer: Any, face: Face, x: Array) -> Cache:
    arrays = face.storage.read("rotary_key", "latent", "length")
    if arrays is None:
        return Cache(*empty_latent_cache(layer, x.shape[:-2], x.dtype).values())
    cache = Cache(*arrays)
    check_continues(cache, *_no_tokens(layer, x.shape[:-2], x.dtype))
    return cache


def _expanded(
    layer: Any, face: Face, query: tuple[Array, Array], latent: Array, rotary_key: Array
) -> tuple[Array, Array, Array]:
    """Return query, key and value of all heads."""
    key, value = (
        _einsum(layer, "...r,rhw->...hw", latent[..., 0, :], _kernel(layer, face, name, latent))
        for name in ("key_up", "value_up")
    )
    shared = jnp.broadcast_to(rotary_key, (*key.shape[:-1], layer.rotary_width))
    return jnp.concatenate(query, -1), jnp.concatenate([key, shared], -1), value


def _absorbed(
    layer: Any, face: Face, query: tuple[Array, Array], latent: Array, rotary_key: Array
) -> tuple[Array, Array, Array]:
    """Return queries in the space of the latents, and the one KV head that all share."""
    content, rotated = query
    projected = _einsum(layer, "...hw,rhw->...hr", content, _kernel(layer, face, "key_up", latent))
    return jnp.concatenate([projected, rotated], -1), jnp.concatenate([latent, rotary_key], -1), latent


def _kernel(layer: Any, face: Face, name: str, like: Array) -> Array:
    """Return a kernel, split by heads: (R, H * width) -> (R, H, width)."""
    return face.parameter(name).astype(like.dtype).reshape(layer.latent_width, layer.num_heads, -1)


def _einsum(layer: Any, formula: str, first: Array, second: Array) -> Array:
    return jnp.einsum(formula, first, second, precision=layer.precision)


def _attend(layer: Any, heads: tuple[Array, Array, Array], mask: Any, call: Call) -> tuple[Array, Array | None]:
    options: dict[str, Any] = {
        "scale": (layer.head_width + layer.rotary_width) ** -0.5 if layer.scale is None else layer.scale,
        "dropout_rate": 0.0 if call.dropout_key is None else layer.dropout_rate,
        "dropout_key": call.dropout_key,
        "precision": layer.precision,
        "implementation": layer.implementation,
    }
    if call.return_weights:
        _, weights, _, context = attend_with_steps(checked_call(*heads, mask, return_weights=True, **options))
        return context, weights
    return attend(checked_call(*heads, mask, **options)), None
