"""Attention alone, from projected heads to context vectors: our kernels beside other libraries."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxattn.attention import dot_product_attention
from jaxattn.benchmark.cases import Case, count_operations, make_mask
from jaxattn.benchmark.measure import Candidate, Comparison
from jaxattn.benchmark.peers import DENSE_PEERS, fused_torch_candidate, jax_candidate, peer_function, peers_for

# Our candidates: the kernel that is chosen, and "jaxattn NAME" for a kernel by name.
OURS = "jaxattn"


def compare_attention(case: Case, implementations: Sequence[str], memory_limit: float) -> Comparison:
    """Compare the chosen kernel, the named implementations, and the installed peers."""
    setting = {"direction": case.direction, "mask": case.mask, "dtype": case.dtype}
    setting |= {letter: getattr(case, letter) for letter in "BTSHD"}
    candidates = list(make_candidates(case, implementations, memory_limit))
    tolerance = max(1e-4, 4 * float(jnp.finfo(case.dtype).eps))
    return Comparison("attention", setting, candidates, tolerance, operations=count_operations(case))


def make_candidates(case: Case, implementations: Sequence[str], memory_limit: float) -> Iterator[Candidate]:
    """Make each candidate; those that would store more weights than fit in `memory_limit` bytes are left out."""
    ours = [OURS, *(f"{OURS} {implementation}" for implementation in implementations)]
    # Scores and weights exist at the same time, and so do their gradients.
    stored = 4.0 * case.B * case.H * case.T * case.S * (4 if case.backward else 2)
    for name in (*ours, *peers_for(case)):
        if stored <= memory_limit or name not in (f"{OURS} dense", *DENSE_PEERS):
            yield make_candidate(name, case)


def make_candidate(name: str, case: Case) -> Candidate:
    """Make one candidate, compiled and ready to run on `random_heads`.

    Raises:
        ImportError: the peer is not installed.
        ValueError: the named implementation does not support the case.
    """
    if name == "torch":
        return fused_torch_candidate(case)
    return jax_candidate(name, case, _our_function(name, case) if name.startswith(OURS) else peer_function(name, case))


def _our_function(name: str, case: Case) -> Callable[..., Array]:
    implementation: Any = name.removeprefix(OURS).strip() or None
    mask = make_mask(case)
    return lambda q, k, v: dot_product_attention(q, k, v, mask, implementation=implementation)
