"""NVIDIA's fused attention kernels, by way of `jax.nn.dot_product_attention`, where their rules allow."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxattn.masks import Causal, Mask, SlidingWindow


def why_not_cudnn(
    query: Array, key: Array, value: Array, mask: Mask | None, bias: Array | None, dropout_rate: float, platform: str
) -> str:
    """Say in words which rule stands against cuDNN; the empty string where none does."""
    if platform not in ("gpu", "cuda"):
        return f"needs an NVIDIA GPU, and this is a {platform}"
    if query.dtype not in (jnp.float16, jnp.bfloat16):
        return f"computes in float16 and bfloat16 only, not in {query.dtype}"
    if query.ndim > 4:
        return f"takes one batch axis, not the {query.ndim - 3} of {query.shape}"
    D, D_v = query.shape[-1], value.shape[-1]
    if D_v != D or D % 8 or D > 128:
        return f"needs heads of one width for keys and values, a multiple of 8 up to 128, not {D} and {D_v}"
    if dropout_rate > 0:
        return "would drop other weights than the rest of this library does for the same key"
    if bias is not None:
        return "with a bias follows rules of its own for each version"
    # Rows that see nothing must come out as 0; these masks always show a query itself.
    if mask is not None and not (_always_sees_itself(mask) and query.shape[-3] == key.shape[-3]):
        return "is used for Causal() and SlidingWindow(size) without an offset, as many queries as keys, or no mask"
    return ""


def cudnn_attention(query: Array, key: Array, value: Array, mask: Mask | None, scale: float) -> Array:
    """Compute `dot_product_attention` with cuDNN; `why_not_cudnn` has nothing against it."""
    window = (mask.size - 1, 0) if isinstance(mask, SlidingWindow) else None
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        scale=scale,
        is_causal=mask is not None,
        local_window_size=window,
        implementation="cudnn",
    )


def _always_sees_itself(mask: Mask) -> bool:
    return isinstance(mask, Causal | SlidingWindow) and isinstance(mask.offset, int) and mask.offset == 0
