"""How the next token is drawn from the logits.

References:
    Fan et al. 2018, "Hierarchical Neural Story Generation" (top-k); Holtzman et al. 2020, "The Curious Case of Neural
    Text Degeneration" (top-p).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int


class Sampling(NamedTuple):
    """The options of `generate` that a compiled step depends on; hashable."""

    temperature: float
    top_k: int | None
    top_p: float | None
    stop_token: int | None

    def check(self, vocab_size: int) -> None:
        """Check the ranges of all options.

        Raises:
            ValueError: an option is out of range.
        """
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature={self.temperature} must be 0 (always the most likely token) or above: write "
                "temperature=1.0"
            )
        if self.top_k is not None and not 1 <= self.top_k <= vocab_size:
            raise ValueError(f"top_k={self.top_k} must be from 1 to {vocab_size}, the vocabulary: write top_k=None")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1: write top_p=None")
        if self.stop_token is not None and not 0 <= self.stop_token < vocab_size:
            raise ValueError(
                f"stop_token={self.stop_token} must be from 0 to {vocab_size - 1}: write stop_token=None for none"
            )


def sample(logits: Float[Array, "*batch vocab_size"], sampling: Sampling, key: Array) -> Int[Array, "*batch"]:
    """Draw one token for each row of logits."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    # With the maximum at 0, the smallest temperatures cannot overflow; they leave only the most likely token.
    logits = (logits - logits.max(-1, keepdims=True)) / max(sampling.temperature, 1e-30)
    if sampling.top_k is not None:
        logits = jnp.where(logits >= lax.top_k(logits, sampling.top_k)[0][..., -1:], logits, -jnp.inf)
    if sampling.top_p is not None:
        logits = jnp.where(_top_p(logits, sampling.top_p), logits, -jnp.inf)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def _top_p(logits: Array, top_p: float) -> Array:
    """Return which tokens stay: those for which all more likely ones hold less than `top_p`, so at least one does."""
    order = jnp.flip(jnp.argsort(logits, axis=-1), axis=-1)  # most likely first
    probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    return jnp.take_along_axis(before < top_p, jnp.argsort(order, axis=-1), axis=-1)
