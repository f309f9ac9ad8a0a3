"""What attention is timed on: a mask, random heads, and the work that the mask leaves."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn import masks

NUM_SEGMENTS = 8
MASKS = ("causal", "full", "window", "segments")


class Case(NamedTuple):
    """One of `MASKS` on random heads `(B, T, H, D)`; `backward` adds the gradients, `window` is what "window" uses."""

    mask: str
    B: int
    T: int
    H: int
    D: int
    backward: bool = False
    window: int = 256

    @property
    def direction(self) -> str:
        """Name what is computed."""
        return "forward+backward" if self.backward else "forward"


def make_mask(case: Case) -> masks.Mask | None:
    """Make the case's mask: "window" and "segments" (8 documents packed into a sequence) are causal too."""
    return {
        "causal": masks.Causal(),
        "full": None,
        "window": masks.SlidingWindow(case.window),
        "segments": masks.Causal() & masks.Segments(_segment_ids(case.T)),
    }[case.mask]


def count_unmasked(case: Case) -> int:
    """Count the entries of one head's scores that the mask leaves."""
    if case.mask == "full":
        return case.T**2
    lengths = np.bincount(np.asarray(_segment_ids(case.T))).tolist() if case.mask == "segments" else [case.T]
    window = min(case.window, case.T) if case.mask == "window" else case.T
    return sum(min(window, n) * (min(window, n) + 1) // 2 + max(n - window, 0) * window for n in lengths)


def count_operations(case: Case) -> float:
    """Count multiplications and additions: two matrix products forward, five more backward."""
    products = 7 if case.backward else 2
    return 2.0 * products * case.B * case.H * case.D * count_unmasked(case)


def random_heads(case: Case) -> list[Array]:
    """Draw query, key, value and a gradient of the context, each `(B, T, H, D)`."""
    shape = (case.B, case.T, case.H, case.D)
    return [jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 4)]


def _segment_ids(T: int) -> Array:
    return jnp.arange(T) // math.ceil(T / NUM_SEGMENTS)
