"""The tokens and documents that a model is given, checked, and the positions that follow from them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int

from jaxattn.checks import as_integers, broadcasts, known
from jaxattn.layer import checked_lengths


def checked_tokens(tokens: Any, config: Any, lengths: Any, decode: bool) -> tuple[Array, Array | None]:
    """Check the tokens; return them and, given lengths, which of them are padding."""
    tokens = jnp.asarray(tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens has dtype {tokens.dtype}, but must be token ids: write tokens.astype(jnp.int32)")
    if tokens.ndim == 0:
        raise ValueError("tokens is a single number, but must be a sequence (..., T): write tokens[None]")
    if tokens.shape[-1] > config.context_length:
        raise ValueError(
            f"tokens has {tokens.shape[-1]} positions, but the model has context_length={config.context_length}: write "
            f"tokens[..., -{config.context_length}:], or train with a longer context"
        )
    ids, is_padding = token_ids(tokens, config.vocab_size), None
    if lengths is not None:
        lengths = checked_lengths(lengths, ids.shape, decode)
        is_padding = jax.lax.broadcasted_iota(jnp.int32, ids.shape, ids.ndim - 1) >= lengths[..., None]
        ids = jnp.where(is_padding, 0, ids)
    numbers = known(ids)
    if numbers is not None:
        check_vocabulary("tokens", tokens, numbers == config.vocab_size, config.vocab_size)
    return ids, is_padding


def token_ids(tokens: Array, vocab_size: int) -> Int[Array, "*batch T"]:
    """Return ids of any integer type as int32, all those outside the vocabulary as `vocab_size`."""
    # Each type clips to what it holds, before a cast could bring an id back into the vocabulary.
    limits = jnp.iinfo(tokens.dtype)
    ids = jnp.clip(tokens, max(-1, limits.min), min(vocab_size, limits.max)).astype(jnp.int32)
    return jnp.where(ids < 0, vocab_size, ids)


def check_vocabulary(name: str, tokens: Any, is_outside: np.ndarray, vocab_size: int) -> None:
    """Check that no id is outside the vocabulary.

    Raises:
        ValueError: one is; Flax's embedding would return NaN, or for -1 the last row.
    """
    if is_outside.any():
        raise ValueError(
            f"{name} has the id {np.asarray(tokens)[is_outside][0]}, but the model's vocabulary has the ids 0 to "
            f"{vocab_size - 1}: encode the text with the model's own tokenizer, and tell padding by lengths"
        )


def number_runs(documents: Any, shape: tuple[int, ...]) -> Array:
    """Number the runs of neighbouring tokens with one id: 0, 1, ... from the left. So no id comes back later."""
    documents = as_integers("documents", documents)
    if documents.ndim == 0 or documents.shape[-1] != shape[-1] or not broadcasts(documents.shape, shape):
        raise ValueError(f"documents has shape {documents.shape}, but must hold one id for each of the tokens {shape}")
    return jnp.cumsum(_is_first(jnp.broadcast_to(documents, shape)), axis=-1, dtype=jnp.int32)


def document_starts(documents: Array | None) -> Array | None:
    """Return less the index of the first token of each token's document `(..., T)`."""
    if documents is None:
        return None
    indices = jax.lax.broadcasted_iota(jnp.int32, documents.shape, documents.ndim - 1)
    return -jax.lax.cummax(jnp.where(_is_first(documents), indices, 0), axis=documents.ndim - 1)


def _is_first(documents: Array) -> Array:
    """Return which tokens begin a document, except the first of all."""
    return jnp.concatenate([jnp.zeros_like(documents[..., :1], bool), documents[..., 1:] != documents[..., :-1]], -1)


def position_vectors(positions: Array, tokens: Array, starts: Array | None, is_padding: Array | None) -> Array:
    """Return each token's learned vector `(..., T, features)`; NaN beyond the context.

    `starts` is the position of the first token `(..., 1)` when decoding, or less the index of each token's document's
    first token `(..., T)`, or None for one document.
    """
    if starts is None:
        return jnp.broadcast_to(positions[: tokens.shape[-1]], (*tokens.shape, positions.shape[-1]))
    indices = jax.lax.broadcasted_iota(jnp.int32, tokens.shape, tokens.ndim - 1) + starts
    indices = indices if is_padding is None else jnp.where(is_padding, 0, indices)
    return positions.at[indices].get(mode="fill", fill_value=jnp.nan)
