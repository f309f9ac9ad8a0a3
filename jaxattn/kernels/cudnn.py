"""NVIDIA's fused attention kernels, through `jax.nn.dot_product_attention`, where their rules allow.

JAX differentiates and batches this kernel itself.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxattn.kernels.call import AttentionCall
from jaxattn.masks import Causal, SlidingWindow


def unsupported(call: AttentionCall) -> str | None:
    """Return why this kernel cannot compute the call, or None."""
    T, S, _, _ = call.sizes
    D, D_v = call.query.shape[-1], call.value.shape[-1]
    # A query that may attend to nothing must get 0; under these masks each query attends to itself.
    causal = isinstance(call.mask, Causal | SlidingWindow) and call.band.last == 0 and T == S
    rules = [
        (jax.default_backend() in ("gpu", "cuda"), f"needs an NVIDIA GPU, and this is a {jax.default_backend()}"),
        (not call.return_weights, "does not store the weights that return_weights asks for"),
        (call.query.dtype == call.key.dtype, "needs a scale that is a plain number, not an array"),
        (
            call.query.dtype in (jnp.float16, jnp.bfloat16),
            f"computes in float16 and bfloat16 only, not in {call.query.dtype}",
        ),
        (len(call.batch) <= 1, f"takes one batch axis, not the {len(call.batch)} of {call.query.shape}"),
        (
            D_v == D and D % 8 == 0 and D <= 128,
            f"needs keys and values of one width, a multiple of 8 up to 128, not {D} and {D_v}",
        ),
        (call.dropout_rate == 0, "would drop other weights than the other kernels do for the same key"),
        (call.bias is None, "has rules for a bias that depend on its version"),
        (
            call.mask is None or causal,
            "supports Causal() and SlidingWindow(size) without an offset, for as many queries as keys, or no mask",
        ),
    ]
    return next((reason for holds, reason in rules if not holds), None)


def attend(call: AttentionCall) -> Array:
    """Return the context `(B, T, H, D_v)`."""
    width = call.band.width
    return jax.nn.dot_product_attention(
        call.query,
        call.key,
        call.value,
        scale=call.scale,
        is_causal=call.mask is not None,
        local_window_size=None if width is None else (width - 1, 0),
        implementation="cudnn",
    )
