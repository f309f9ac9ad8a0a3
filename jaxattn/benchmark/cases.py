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
    """One of `MASKS` on random heads `(B, T, H, D)`.

    `backward` adds the gradients, `window` is what "window" uses, and `keys` is S where it is not T, as in decoding.
    """

    mask: str
    B: int
    T: int
    H: int
    D: int
    backward: bool = False
    window: int = 256
    keys: int | None = None
    dtype: str = "float32"

    @property
    def S(self) -> int:  # noqa: N802
        """The number of keys."""
        return self.T if self.keys is None else self.keys

    @property
    def direction(self) -> str:
        """Name what is computed."""
        return "forward+backward" if self.backward else "forward"


def make_mask(case: Case) -> masks.Mask | None:
    """Make the case's mask: "window" and "segments" (8 documents packed into a sequence) are causal too.

    The last query attends to the last key.
    """
    if case.mask == "full":
        return None
    causal = masks.Causal(case.S - case.T)
    if case.mask == "window":
        return masks.SlidingWindow(case.window, case.S - case.T)
    ids = _segment_ids(case.S)
    return causal if case.mask == "causal" else causal & masks.Segments(ids[case.S - case.T :], ids)


def count_unmasked(case: Case) -> int:
    """Count the entries of one head's scores that the mask leaves."""
    if case.mask == "full":
        return case.T * case.S
    if case.S != case.T:  # few queries: count them one by one
        mask = make_mask(case)
        return 0 if mask is None else int(mask.array(case.T, case.S).sum())
    lengths = np.bincount(np.asarray(_segment_ids(case.T))).tolist() if case.mask == "segments" else [case.T]
    window = min(case.window, case.T) if case.mask == "window" else case.T
    return sum(min(window, n) * (min(window, n) + 1) // 2 + max(n - window, 0) * window for n in lengths)


def count_operations(case: Case) -> float:
    """Count multiplications and additions: two matrix products forward, five more backward."""
    products = 7 if case.backward else 2
    return 2.0 * products * case.B * case.H * case.D * count_unmasked(case)


def random_heads(case: Case) -> list[Array]:
    """Draw query `(B, T, H, D)`, key and value `(B, S, H, D)`, and a gradient of the context `(B, T, H, D)`."""
    keys = jax.random.split(jax.random.key(0), 4)
    tokens = (case.T, case.S, case.S, case.T)
    return [
        jax.random.normal(key, (case.B, n, case.H, case.D)).astype(case.dtype)
        for key, n in zip(keys, tokens, strict=True)
    ]


def _segment_ids(T: int) -> Array:
    return jnp.arange(T) // math.ceil(T / NUM_SEGMENTS)
