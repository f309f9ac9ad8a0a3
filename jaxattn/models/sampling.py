"""How the next token is drawn from the logits.

References:
    Fan et al. 2018, "Hierarchical Neural Story Generation" (top-k); Holtzman et al. 2020, "The Curious Case of Neural
    Text Degeneration" (top-p).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from jaxattn.checks import as_number, as_size

# Drawn where the logits are not numbers, because a compiled program cannot raise.
NO_TOKEN = -1


class Sampling(NamedTuple):
    """The options of `generate` that a compiled step depends on; hashable."""

    temperature: float
    top_k: int | None
    top_p: float | None
    stop_token: int | None

    @classmethod
    def checked(cls, vocab_size: int, temperature: Any, top_k: Any, top_p: Any, stop_token: Any) -> "Sampling":
        """Check the ranges of all options; NumPy's numbers become Python's.

        Raises:
            TypeError: an option is no number.
            ValueError: an option is out of range.
        """
        temperature = as_number("temperature", temperature)
        if not 0 <= temperature < float("inf"):
            raise ValueError(
                f"temperature={temperature} must be 0 (always the most likely token) or above: write temperature=1.0"
            )
        top_k = None if top_k is None else as_size("top_k", top_k)
        if top_k is not None and not 1 <= top_k <= vocab_size:
            raise ValueError(f"top_k={top_k} must be from 1 to {vocab_size}, the vocabulary: write top_k=None")
        top_p = None if top_p is None else as_number("top_p", top_p)
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p={top_p:g} must be above 0 and at most 1: write top_p=None")
        stop_token = None if stop_token is None else as_size("stop_token", stop_token)
        if stop_token is not None and not 0 <= stop_token < vocab_size:
            raise ValueError(
                f"stop_token={stop_token} must be from 0 to {vocab_size - 1}: write stop_token=None for none"
            )
        return cls(temperature, top_k, top_p, stop_token)


def sample(logits: Float[Array, "*batch vocab_size"], sampling: Sampling, key: Array) -> Int[Array, "*batch"]:
    """Draw one token for each row of logits; where they hold NaN or infinity, `NO_TOKEN`."""
    maximum = logits.max(-1, keepdims=True)
    is_valid = jnp.isfinite(maximum[..., 0])
    if sampling.temperature == 0:
        token = jnp.argmax(logits, axis=-1)
    else:
        # With the maximum at 0, the smallest temperatures cannot overflow; they leave only the most likely token.
        logits = (logits - maximum) / max(sampling.temperature, 1e-30)
        if sampling.top_k is not None:
            kept = jnp.zeros(logits.shape, bool)
            # Of equal logits, `top_k` takes the first.
            kept = jnp.put_along_axis(kept, lax.top_k(logits, sampling.top_k)[1], True, axis=-1, inplace=False)
            logits = jnp.where(kept, logits, -jnp.inf)
        if sampling.top_p is not None and sampling.top_p < 1:
            logits = jnp.where(top_p_mask(logits, sampling.top_p), logits, -jnp.inf)
        token = jax.random.categorical(key, logits, axis=-1)
    return jnp.where(is_valid, token.astype(jnp.int32), NO_TOKEN)


def top_p_mask(logits: Array, top_p: float) -> Array:
    """Return which tokens stay: those for which all more likely ones hold less than `top_p`, so at least one does."""
    order = jnp.argsort(-logits, axis=-1, stable=True)  # most likely first
    probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    # Summed from the least likely token on: small numbers added to a large sum would be rounded away.
    remaining = lax.cumsum(probabilities, axis=logits.ndim - 1, reverse=True)
    stays = (remaining > 1 - top_p).at[..., 0].set(True)
    return jnp.take_along_axis(stays, jnp.argsort(order, axis=-1), axis=-1)
