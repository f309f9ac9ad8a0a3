"""Strategy "all_to_all": before attention each device swaps its tokens of all heads for all tokens of some heads.

Each device then computes ordinary attention for its heads, with any kernel, and swaps the context back. It sends less
than the other strategies, but there can be no more devices than query heads (Jacobs et al. 2023, "DeepSpeed Ulysses").
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn.kernels import transforms
from jaxattn.kernels.call import AttentionCall
from jaxattn.ring.order import zigzag_order
from jaxattn.ring.parts import Shards
from jaxattn.ring.sending import swap


def attend(shards: Shards, call: AttentionCall) -> tuple[Array, ...]:
    """Return a device's context `(B, T / n, H, D_v)`, and the logsumexp `(B, H, T / n)` if the call asks for it.

    Queries, keys and values hold the device's tokens and all heads; the other arrays all tokens and the heads that it
    computes.
    """
    n = shards.layout.devices
    # Neighbouring devices that compute heads of one group each get a copy of its keys.
    copies = max(1, n // call.key.shape[-2])
    query = _to_heads(shards, call.query)
    key, value = (_to_heads(shards, jnp.repeat(array, copies, axis=-2)) for array in (call.key, call.value))
    call = dataclasses.replace(call, query=query, key=key, value=value)
    context, *lse = transforms.attend(call if shards.is_natural else _in_natural_order(shards, call))
    order = None if shards.is_natural else zigzag_order(shards.T, n)
    return _to_tokens(shards, context, -3, -2, order), *(_to_tokens(shards, array, -1, -2, order) for array in lse)


def _to_heads(shards: Shards, array: Array) -> Array:
    """(B, T / n, H, D) -> (B, T, H / n, D)."""
    tokens, heads = array.ndim - 3, array.ndim - 2
    return swap(array, shards.axis, heads, tokens)


def _to_tokens(shards: Shards, array: Array, tokens: int, heads: int, order: np.ndarray | None) -> Array:
    """(B, T, H / n, D) -> (B, T / n, H, D), the tokens in the order of the caller."""
    tokens, heads = tokens % array.ndim, heads % array.ndim
    array = array if order is None else jnp.take(array, order, tokens)
    return swap(array, shards.axis, tokens, heads)


def _in_natural_order(shards: Shards, call: AttentionCall) -> AttentionCall:
    """Put the tokens of all arrays, which the caller gave in zig-zag order, into natural order."""
    n = shards.layout.devices
    queries, keys = (np.argsort(zigzag_order(length, n)) for length in (shards.T, shards.S))

    def entries(array: Array) -> Array:
        """Reorder (B, H, T, S)."""
        array = array if array.shape[-2] == 1 else jnp.take(array, queries, array.ndim - 2)
        return array if array.shape[-1] == 1 else jnp.take(array, keys, array.ndim - 1)

    def tokens(array: Array, index: np.ndarray) -> Array:
        return jnp.take(array, index, array.ndim - 3)

    return dataclasses.replace(
        call,
        query=tokens(call.query, queries),
        key=tokens(call.key, keys),
        value=tokens(call.value, keys),
        mask=jax.tree.map(entries, call.mask),
        bias=None if call.bias is None else entries(call.bias),
    )
