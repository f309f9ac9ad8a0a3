"""Attention alone, from projected heads to context vectors, beside what people use today, where it is installed."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxattn import masks
from jaxattn.attention import dot_product_attention
from jaxattn.benchmark.measure import Candidate, compiled, cores, installed
from jaxattn.extras import require

WINDOW, SEGMENTS = 256, 8
MASKS = ("causal", "full", "window", "segments")
DENSE = ("jaxattn dense", "jax.nn", "flax.linen", "flax.nnx", "equinox")
PEERS = ("jaxattn", *DENSE, "tokamax", "torch")


def make_mask(kind: str, length: int) -> masks.Mask | None:
    """Return the mask of that name: a window of 256, or 8 documents packed into a sequence, both causal."""
    return {
        "causal": masks.Causal(),
        "full": None,
        "window": masks.SlidingWindow(WINDOW),
        "segments": masks.Causal() & masks.Segments(_document_of_each(length)),
    }[kind]


def visible_cells(kind: str, length: int) -> int:
    """Count the cells that a mask shows: the work that has to be done."""
    if kind == "full":
        return length**2
    parts = np.bincount(np.asarray(_document_of_each(length))) if kind == "segments" else np.array([length])
    reach = min(WINDOW, length) if kind == "window" else length
    counts = [(min(reach, n) * (min(reach, n) + 1)) // 2 + max(n - reach, 0) * reach for n in parts.tolist()]
    return sum(counts)


def operations(kind: str, shape: tuple[int, int, int, int], backward: bool) -> float:
    """Count multiplications and additions: two products forward, five more backward."""
    B, T, H, D = shape
    return B * H * visible_cells(kind, T) * 4.0 * D * (3.5 if backward else 1.0)


def candidates(kind: str, shape: tuple[int, int, int, int], backward: bool, memory: float) -> Iterator[Candidate]:
    """Make each candidate in turn; those that would store more weights than fit in `memory` bytes are left out."""
    B, T, H, _ = shape
    # Scores, weights and their gradients exist at the same time.
    stored = 4.0 * B * H * T * T * (4 if backward else 2)
    for name in PEERS:
        if (name in DENSE and stored > memory) or not _available(name, kind):
            continue
        yield candidate(name, kind, shape, backward)


def candidate(name: str, kind: str, shape: tuple[int, int, int, int], backward: bool) -> Candidate:
    """Make one candidate: random heads `(B, T, H, D)`, compiled and ready to run."""
    arrays = [jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 4)]
    if name == "torch":
        return _torch(kind, arrays, backward)
    attend = _functions(kind, shape)[name]
    if not backward:
        return compiled(name, attend, *arrays[:3])

    def both(query: Array, key: Array, value: Array, gradient: Array) -> Any:
        context, pull = jax.vjp(attend, query, key, value)
        return context, pull(gradient)

    return compiled(name, both, *arrays)


def _available(name: str, kind: str) -> bool:
    package = {"equinox": "equinox", "tokamax": "tokamax", "torch": "torch"}.get(name)
    # Torch and tokamax take a window or segments as an array of T × T only; that is no way that anybody would choose.
    return package is None or (installed(package) and (kind in ("causal", "full") or name == "equinox"))


def _functions(kind: str, shape: tuple[int, int, int, int]) -> dict[str, Callable[..., Array]]:
    T = shape[1]
    mask = make_mask(kind, T)
    array = None if mask is None else mask.array(T, T)[None, None]
    return {
        "jaxattn": lambda q, k, v: dot_product_attention(q, k, v, mask),
        "jaxattn dense": lambda q, k, v: dot_product_attention(q, k, v, mask, implementation="dense"),
        "jax.nn": lambda q, k, v: jax.nn.dot_product_attention(
            q, k, v, mask=array if kind == "segments" else None, is_causal=kind in ("causal", "window"),
            local_window_size=(WINDOW - 1, 0) if kind == "window" else None,
        ),
        "flax.linen": lambda q, k, v: nn.dot_product_attention(q, k, v, mask=array),
        "flax.nnx": lambda q, k, v: nnx.dot_product_attention(q, k, v, mask=array),
        "equinox": lambda q, k, v: _equinox(q, k, v, None if array is None else array[0, 0]),
        "tokamax": lambda q, k, v: _tokamax(q, k, v, kind),
    }  # fmt: skip


def _equinox(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    """Equinox's layer with nothing before and after its heads."""
    eqx = require("equinox", extra="bench")
    *_, H, D = query.shape
    layer = eqx.nn.MultiheadAttention(H, H * D, key=jax.random.key(0))
    projections = lambda layer: (layer.query_proj, layer.key_proj, layer.value_proj, layer.output_proj)  # noqa: E731
    layer = eqx.tree_at(projections, layer, (eqx.nn.Identity(),) * 4)
    flat = [array.reshape(*array.shape[:2], H * D) for array in (query, key, value)]
    return jax.vmap(lambda q, k, v: layer(q, k, v, mask))(*flat).reshape(query.shape)


def _tokamax(query: Array, key: Array, value: Array, kind: str) -> Array:
    tokamax = require("tokamax", extra="bench")
    # Its settings are command-line flags, and it would read ours.
    require("absl.flags", extra="bench").FLAGS.mark_as_parsed()
    return tokamax.dot_product_attention(query, key, value, is_causal=kind == "causal", implementation="xla_chunked")


def _torch(kind: str, arrays: list[Array], backward: bool) -> Candidate:
    """PyTorch's fused attention on its own layout, (B, H, T, D), with as many threads as there are cores."""
    torch = require("torch", extra="torch")
    torch.set_num_threads(cores())
    # (B, T, H, D) -> (B, H, T, D)
    *inputs, gradient = (torch.from_numpy(np.array(array)).transpose(1, 2).contiguous() for array in arrays)
    inputs = [array.requires_grad_(backward) for array in inputs]
    attend = torch.nn.functional.scaled_dot_product_attention

    def run() -> Any:
        context = attend(*inputs, is_causal=kind == "causal")
        return (context, *torch.autograd.grad(context, inputs, gradient)) if backward else context

    def compared(result: Any) -> Any:
        results = result if backward else (result,)
        return [array.detach().transpose(1, 2).numpy() for array in results]

    return Candidate("torch", run, compared)


def _document_of_each(length: int) -> Array:
    return jnp.arange(length) // math.ceil(length / SEGMENTS)
