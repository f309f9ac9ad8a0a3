"""`attention_fn` for layers that people already have, Flax's Linen and NNX layers.

    nn.MultiHeadDotProductAttention(num_heads=8, attention_fn=jaxattn.linen_attention_fn)
    nnx.MultiHeadAttention(8, 512, attention_fn=jaxattn.nnx_attention_fn, rngs=nnx.Rngs(0))

Equinox's layer takes no such function, so `equinox_attention` calls the layer in its place.

The results are those of Flax's own function, faster and in linear memory, with three deliberate differences: a query
that may attend to nothing gets 0, not the average of all values; in float16 and bfloat16 the softmax is computed in
float32; and the same dropout key drops other entries.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxattn.attention import attend, attend_with_steps
from jaxattn.checks import as_floating, check_key
from jaxattn.extras import require
from jaxattn.kernels.call import checked_call
from jaxattn.masks import Causal, Mask, combine


def linen_attention_fn(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    mask: Any = None,
    broadcast_dropout: bool = True,
    dropout_rng: Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    module: Any = None,
    force_fp32_for_softmax: bool = False,
    einsum_dot_general: Any = None,
    qk_attn_weights_einsum: Any = None,
    attn_weights_value_einsum: Any = None,
    promote_dtype: Any = None,
    is_causal: bool = False,
) -> Array:
    """Compute what `flax.linen.dot_product_attention` and `flax.nnx.dot_product_attention` compute.

    Args:
        query: `(..., T, H, D)`.
        key: `(..., S, K, D)`, K divides H.
        value: `(..., S, K, D_v)`.
        bias: added to the scores; broadcasts to `(..., H, T, S)`.
        mask: one of `jaxattn.masks`, or an array that broadcasts to `(..., H, T, S)`; entries other than 0 may attend
            (Flax's masks are floats).
        broadcast_dropout: True drops the same entries in every head and example (Flax's default), False does not.
        dropout_rng: PRNG key for dropout.
        dropout_rate: share of the weights that are dropped.
        deterministic: True turns dropout off.
        dtype: the type to convert the inputs to; None is their common type.
        precision: of the matrix products, as in `jax.lax.dot_general`; of a pair, the higher holds for both factors.
        module: a layer that the weights are sown into, as `attention_weights` in its intermediates.
        force_fp32_for_softmax: has no effect, because the softmax is always computed in float32 or wider.
        einsum_dot_general: not supported, like the next two: a kernel has its own matrix products.
        qk_attn_weights_einsum: not supported.
        attn_weights_value_einsum: not supported.
        promote_dtype: converts `(query, key, value)` to one type, called as NNX calls it; None is the common type.
        is_causal: True adds a causal mask that aligns the first query with the first key, as Flax's does; refused for
            one query and more keys, as in decoding.

    Raises:
        TypeError: an input is not floating point.
        ValueError: an argument is not supported, or shapes do not fit.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from jaxattn import linen_attention_fn
        >>> x = jax.random.normal(jax.random.key(0), (2, 5, 8))
        >>> theirs = nn.MultiHeadDotProductAttention(num_heads=2)
        >>> ours = nn.MultiHeadDotProductAttention(num_heads=2, attention_fn=linen_attention_fn)
        >>> variables = theirs.init(jax.random.key(1), x)
        >>> bool(jnp.allclose(theirs.apply(variables, x), ours.apply(variables, x), atol=1e-6))
        True
    """
    refused = {
        "einsum_dot_general": einsum_dot_general,
        "qk_attn_weights_einsum": qk_attn_weights_einsum,
        "attn_weights_value_einsum": attn_weights_value_einsum,
    }
    for name, given in refused.items():
        if given is not None:
            raise ValueError(
                f"{name} is given, but jaxattn's kernels have their own matrix products: leave it out, "
                "or write attention_fn=flax.linen.dot_product_attention to use it"
            )
    if promote_dtype is not None:
        query, key, value = promote_dtype((query, key, value), dtype=dtype)
    common = jnp.result_type(query, key, value) if dtype is None else dtype
    drops = not deterministic and dropout_rate > 0
    call = checked_call(
        query.astype(common),
        key.astype(common),
        value.astype(common),
        _mask(mask, is_causal, query.shape[-3], key.shape[-3]),
        bias=bias,
        dropout_rate=dropout_rate if drops else 0.0,
        dropout_key=check_key("dropout_rng", dropout_rng) if drops else None,
        dropout_shared=broadcast_dropout,
        precision=precision,
    )
    if module is None:
        return attend(call)
    _, weights, _, context = attend_with_steps(call)
    if isinstance(module, nn.Module):
        module.sow("intermediates", "attention_weights", weights)
    else:
        from flax import nnx

        module.sow(nnx.Intermediate, "attention_weights", weights)
    return context


# NNX's layer passes a subset of these keywords.
nnx_attention_fn = linen_attention_fn


def _mask(mask: Any, is_causal: bool, T: int, S: int) -> Mask | None:
    if is_causal and T == 1 < S:
        raise ValueError(
            f"is_causal=True with 1 query and {S} keys would mask all keys but the first, and in decoding the query "
            "stands at the last: leave it out, as decoding in Flax's layers masks later keys itself, or write "
            f"mask=masks.Causal({S - 1}) to align the query with the last key"
        )
    if mask is not None and not isinstance(mask, Mask):
        mask = jnp.asarray(mask) != 0
    return combine(Causal() if is_causal else None, mask)


def equinox_attention(
    layer: Any,
    query: Array,
    key_: Array,
    value: Array,
    mask: Any = None,
    *,
    key: Array | None = None,
    inference: bool | None = None,
    process_heads: Any = None,
    implementation: Any = None,
) -> Array:
    """Compute what an `eqx.nn.MultiheadAttention` computes, over its own weights, by our kernels.

    Args:
        layer: the layer; it stays as it is, so its weights train and save as before.
        query: `(T, query_size)`; use `jax.vmap` for a batch, as with Equinox's own call.
        key_: `(S, key_size)`.
        value: `(S, value_size)`.
        mask: one of `jaxattn.masks`, or a boolean array `(T, S)` or `(num_heads, T, S)`, True = may attend.
        key: PRNG key for dropout.
        inference: True turns dropout off; None follows the layer.
        process_heads: a function of query, key and value heads `(T, H, D)`, which returns new ones.
        implementation: the kernel of `dot_product_attention`; None chooses.

    Raises:
        ImportError: Equinox is not installed.
        TypeError: `layer` is another module.
        ValueError: the shapes do not fit, or the key is missing.

    Example::

        layer = eqx.nn.MultiheadAttention(8, 512, key=key)
        output = jax.vmap(lambda x: equinox_attention(layer, x, x, x, masks.Causal()))(batch)
    """
    eqx = require("equinox", extra="equinox")
    if not isinstance(layer, eqx.nn.MultiheadAttention):
        raise TypeError(f"layer is {type(layer).__name__}, but must be an equinox.nn.MultiheadAttention")
    projected = ("query", query, layer.query_proj), ("key_", key_, layer.key_proj), ("value", value, layer.value_proj)
    heads = [_equinox_heads(name, x, dense, layer.num_heads) for name, x, dense in projected]
    if process_heads is not None:
        shapes = [array.shape for array in heads]
        heads = list(process_heads(*heads))
        if [array.shape for array in heads] != shapes:
            raise ValueError(
                f"process_heads returned {[a.shape for a in heads]}, but must keep the shapes {shapes}: rotate or "
                "scale the heads, and change their number or width in the layer"
            )
    dropout = layer.dropout
    drops = not (dropout.inference if inference is None else inference) and dropout.p > 0
    query_heads, key_heads, value_heads = heads
    call = checked_call(
        query_heads,
        key_heads,
        value_heads,
        mask,
        dropout_rate=dropout.p if drops else 0.0,
        dropout_key=check_key("key", key) if drops else None,
        implementation=implementation,
    )
    return _equinox_dense(layer.output_proj, attend(call).reshape(len(query_heads), -1))


def _equinox_heads(name: str, x: Any, dense: Any, num_heads: int) -> Array:
    """Project and split: (T, d_in) -> (T, H, D)."""
    x, d_in = as_floating(name, x), dense.weight.shape[1]
    if x.ndim != 2 or x.shape[1] != d_in:
        raise ValueError(f"{name} has shape {x.shape}, but must be (tokens, {d_in}): write jax.vmap over a batch")
    projected = _equinox_dense(dense, x)
    return projected.reshape(len(x), num_heads, projected.shape[-1] // num_heads)


def _equinox_dense(dense: Any, x: Array) -> Array:
    """Project vectors `(T, d_in)` by an `eqx.nn.Linear`, whose weight is `(d_out, d_in)`."""
    projected = x @ dense.weight.T
    return projected if dense.bias is None else projected + dense.bias[None]
