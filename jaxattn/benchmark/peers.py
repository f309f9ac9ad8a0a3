"""Other libraries' attention, each called the way its users would."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import nnx
from jax import Array

from jaxattn.benchmark.cases import Case, make_mask, random_heads
from jaxattn.benchmark.machine import count_cores, is_installed
from jaxattn.benchmark.measure import Candidate, compiled, interleaved_medians, matmul_size
from jaxattn.extras import require

PEERS = ("jax.nn", "flax.linen", "flax.nnx", "equinox", "tokamax", "torch")
# These ask XLA for products of float16 that it does not have on CPUs.
NO_FLOAT16 = ("jax.nn", "flax.nnx", "tokamax")
# These store all weights, (B, H, T, S).
DENSE_PEERS = ("jax.nn", "flax.linen", "flax.nnx", "equinox")


def peers_for(case: Case) -> list[str]:
    """List the peers that are installed and support the case's mask.

    torch and tokamax take a window or segments only as an array `(T, T)`, which nobody would choose for long sequences.
    """
    simple_mask = case.mask == "full" or (case.mask == "causal" and case.S == case.T)
    needs = {"equinox": True, "tokamax": simple_mask, "torch": simple_mask}
    peers = [name for name in PEERS if name not in needs or (needs[name] and is_installed(name))]
    return [name for name in peers if case.dtype != "float16" or name not in NO_FLOAT16]


def peer_function(name: str, case: Case) -> Callable[..., Array]:
    """Return a JAX peer's function of query, key and value, each `(B, T, H, D)`."""
    mask = make_mask(case)
    array = None if mask is None else mask.array(case.T, case.S)[None, None]  # (1, 1, T, S)
    functions = {
        "jax.nn": lambda q, k, v: jax.nn.dot_product_attention(
            q, k, v, **({"mask": array} if case.mask == "segments" or case.S != case.T else {
                "is_causal": case.mask in ("causal", "window"),
                "local_window_size": (case.window - 1, 0) if case.mask == "window" else None,
            }),
        ),
        "flax.linen": lambda q, k, v: nn.dot_product_attention(q, k, v, mask=array),
        "flax.nnx": lambda q, k, v: nnx.dot_product_attention(q, k, v, mask=array),
        "equinox": lambda q, k, v: _equinox(q, k, v, None if array is None else array[0, 0]),
        "tokamax": lambda q, k, v: _tokamax(q, k, v, is_causal=case.mask == "causal"),
    }  # fmt: skip
    return functions[name]


def jax_candidate(name: str, case: Case, attend: Callable[..., Array]) -> Candidate:
    """Compile a function of query, key and value, each `(B, T, H, D)`, in the direction of the case."""
    *inputs, gradient = random_heads(case)
    if not case.backward:
        return compiled(name, attend, *inputs)

    def context_and_gradients(query: Array, key: Array, value: Array, gradient: Array) -> Any:
        context, vjp = jax.vjp(attend, query, key, value)
        return context, vjp(gradient)

    return compiled(name, context_and_gradients, *inputs, gradient)


def fused_torch_candidate(case: Case) -> Candidate:
    """Make PyTorch's fused attention a candidate."""
    attend = require("torch", extra="torch").nn.functional.scaled_dot_product_attention
    return torch_candidate("torch", case, lambda q, k, v: attend(q, k, v, is_causal=case.mask == "causal"))


def torch_candidate(name: str, case: Case, attend: Callable[..., Any]) -> Candidate:
    """Make a function of PyTorch a candidate, on its own layout `(B, H, T, D)` and on all cores."""
    torch = require("torch", extra="torch")
    torch.set_num_threads(count_cores())
    # (B, T, H, D) -> (B, H, T, D)
    arrays = (
        torch.from_numpy(np.array(array, np.float32)).to(getattr(torch, case.dtype)).transpose(1, 2).contiguous()
        for array in random_heads(case)
    )
    *inputs, gradient = arrays
    inputs = [array.requires_grad_(case.backward) for array in inputs]

    def run() -> Any:
        context = attend(*inputs)
        return (context, *torch.autograd.grad(context, inputs, gradient)) if case.backward else (context,)

    def compared(results: Any) -> Any:
        return [array.detach().transpose(1, 2).float().numpy() for array in results]

    return Candidate(name, run, compared)


def torch_matmul_rate(dtype: str) -> float | None:
    """Measure PyTorch's matrix products in GFLOP/s, where it is installed."""
    if not is_installed("torch"):
        return None
    torch = require("torch", extra="torch")
    torch.set_num_threads(count_cores())
    size = matmul_size(dtype)
    matrix = torch.ones(size, size, dtype=getattr(torch, dtype))
    seconds = interleaved_medians([Candidate("matmul", lambda: matrix @ matrix)], 1.0)["matmul"]
    return 2 * size**3 / seconds / 1e9


def _equinox(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    """Run Equinox's layer with identities as its projections."""
    eqx = require("equinox", extra="bench")
    *_, H, D = query.shape
    layer = eqx.nn.MultiheadAttention(H, H * D, key=jax.random.key(0))
    projections = lambda layer: (layer.query_proj, layer.key_proj, layer.value_proj, layer.output_proj)  # noqa: E731
    layer = eqx.tree_at(projections, layer, (eqx.nn.Identity(),) * 4)
    flat = [array.reshape(*array.shape[:2], H * D) for array in (query, key, value)]
    return jax.vmap(lambda q, k, v: layer(q, k, v, mask))(*flat).reshape(query.shape)


def _tokamax(query: Array, key: Array, value: Array, is_causal: bool) -> Array:
    tokamax = require("tokamax", extra="bench")
    # Its settings are command-line flags, and it would parse ours.
    require("absl.flags", extra="bench").FLAGS.mark_as_parsed()
    return tokamax.dot_product_attention(query, key, value, is_causal=is_causal, implementation="xla_chunked")
