"""NVIDIA's fused attention kernels, through `jax.nn.dot_product_attention`, where their rules allow."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxattn.kernels.call import AttentionCall, Gradients
from jaxattn.kernels.platforms import cuda_capability
from jaxattn.kernels.softmax import LogSumExp
from jaxattn.masks import And, Causal, Lengths, Mask, SlidingWindow


def unsupported(call: AttentionCall) -> str | None:
    """Return why this kernel cannot compute the call, or None."""
    T, S, _, _ = call.sizes
    D, D_v = call.query.shape[-1], call.value.shape[-1]
    if call.platform != "cuda":
        return f"needs an NVIDIA GPU, and this is a {call.platform}"
    capability = cuda_capability()
    if capability is None:
        return "can be traced only where there is an NVIDIA GPU"
    widest = 256 if capability >= (9, 0) else 128
    causal, lengths = _parts(call.mask)
    rules = [
        (capability >= (8, 0), f"needs compute capability 8.0, and this GPU has {'.'.join(map(str, capability))}"),
        (not call.is_partial, "keeps the logsumexp of its keys to itself"),
        (not call.return_weights, "does not store the weights that return_weights asks for"),
        (
            call.value.dtype in (jnp.float16, jnp.bfloat16),
            f"computes in float16 and bfloat16 only, not in {call.value.dtype}",
        ),
        (T % 2 == 0 and S % 2 == 0, f"has gradients for even numbers of queries and keys only, not for {T} and {S}"),
        (
            D_v == D and D % 8 == 0 and 0 < D <= widest,
            f"needs keys and values of one width, a multiple of 8 up to {widest} on this GPU, not {D} and {D_v}",
        ),
        (call.dropout_rate == 0, "would drop other weights than the other kernels do for the same key"),
        (call.bias is None and call.diagonals is None, "has rules for a bias that depend on its version"),
        (call.soft_cap is None, "has no soft cap"),
        (call.sinks is None, "has no sinks"),
        (not call.return_lse, "gives no gradient for the logsumexp that return_lse asks for"),
        # A query that may attend to nothing must get 0; under these masks each query attends to itself, or, under
        # lengths, to the first key.
        (
            call.mask is None
            or (
                (causal is None or (call.band.last == 0 and T == S))
                and (lengths is None or not isinstance(causal, SlidingWindow))
                and (causal, lengths) != (None, None)
            ),
            "supports Causal() and SlidingWindow(size) without an offset, for as many queries as keys, Lengths(...), "
            "Causal() & Lengths(...), or no mask",
        ),
    ]
    return next((reason for holds, reason in rules if not holds), None) or _refused(call)


def _parts(mask: Mask | None) -> tuple[Causal | SlidingWindow | None, Lengths | None]:
    """Return the mask's causal part and its lengths; neither if it has other parts."""
    parts = (mask.first, mask.second) if isinstance(mask, And) else (mask,)
    causal = [part for part in parts if isinstance(part, Causal | SlidingWindow)]
    lengths = [part for part in parts if isinstance(part, Lengths)]
    if len(causal) > 1 or len(lengths) > 1 or len(causal) + len(lengths) < len(parts):
        return None, None
    return next(iter(causal), None), next(iter(lengths), None)


def _refused(call: AttentionCall) -> str | None:
    """Return why JAX refuses the call or its gradients, which depends on the versions installed, or None."""
    try:
        jax.eval_shape(forward, call)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return f"is refused by JAX: {error}"
    return None


def forward(call: AttentionCall) -> tuple[Array, LogSumExp]:
    """Return the context `(B, T, H, D_v)`, and no logsumexp: JAX keeps cuDNN's own residuals to itself."""
    T, _, H, _ = call.sizes
    return _with_vjp(call)[0], LogSumExp.of_no_key((*call.batch, H, T), call.wide)


def backward(
    call: AttentionCall, context: Array, lse: LogSumExp, gradient: Array, lse_gradient: Array | None = None
) -> Gradients:
    """Return the gradients, with JAX's.

    They need the forward pass again; in one program, the compiler computes it once.
    """
    return Gradients(*_with_vjp(call)[1](gradient), None)


def _with_vjp(call: AttentionCall) -> tuple[Array, Callable[[Array], tuple[Array, Array, Array]]]:
    arrays = [jnp.broadcast_to(x, (*call.batch, *x.shape[-3:])) for x in (call.query, call.key, call.value)]
    context, vjp = jax.vjp(functools.partial(_attend, call), *arrays)
    return context, vjp


def _attend(call: AttentionCall, query: Array, key: Array, value: Array) -> Array:
    """Return the context `(B, T, H, D)`; all arrays have the whole batch."""
    causal, lengths = _parts(call.mask)
    keys = None
    if lengths is not None:
        keys = jnp.broadcast_to(lengths.lengths, (*call.batch, 1, 1, 1)).ravel()  # one for each example
        # An example without keys gets one, so that nothing is divided by 0, and a context of 0 below.
        keys = jnp.clip(keys, 1, key.shape[-3]).astype(jnp.int32)
    # A scale that is an array has widened the query.
    inputs = (array.astype(value.dtype).reshape(-1, *array.shape[-3:]) for array in (query, key, value))
    context = jax.nn.dot_product_attention(
        *inputs,
        scale=call.scale,
        is_causal=causal is not None,
        key_value_seq_lengths=keys,
        # How many keys before and after its own a query may attend to.
        local_window_size=(causal.size - 1, 0) if isinstance(causal, SlidingWindow) else None,
        implementation="cudnn",
    ).reshape(query.shape)
    return context if lengths is None else jnp.where(lengths.lengths > 0, context, 0)
