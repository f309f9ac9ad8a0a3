"""The steps of decoding: read prompts, then draw a token and read it, again and again, with a KV cache.

Inside the context, a step reads one token. Once a sequence fills the context, its window moves on by one token, and
with it every token's position, so a step reads the whole window again.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jaxattn.checks import known
from jaxattn.models.gpt import GPT
from jaxattn.models.inputs import check_vocabulary, token_ids
from jaxattn.models.llama import Llama
from jaxattn.models.sampling import Sampling, sample


class Prompts(NamedTuple):
    """The latest tokens of each prompt, from the left of the context on.

    Args:
        window: `(..., L)`, with L the context length; 0 on the right of each prompt.
        lengths: `(...)`, the number of tokens in each prompt.
        longest: the length of the longest prompt, at most L.
    """

    window: Int[Array, "*batch L"]
    lengths: Int[Array, "*batch"]
    longest: int


class State(NamedTuple):
    """What the next step needs: the latest tokens, the next token's logits, and the KV cache."""

    window: Int[Array, "*batch L"]
    lengths: Int[Array, "*batch"]
    logits: Float[Array, "*batch vocab_size"]
    stopped: Bool[Array, "*batch"]
    cache: Any


def make_prompts(prompt: Any, lengths: Any, context_length: int, vocab_size: int) -> Prompts:
    """Check prompts `(..., P)` and their lengths, and keep the latest tokens of each.

    Raises:
        ValueError: a prompt is empty or holds no token ids, or the lengths do not fit the prompts.
    """
    L, is_known = context_length, _is_known(prompt) and _is_known(lengths)
    # NumPy compiles nothing, so prompts of other shapes cost no time.
    xp: Any = np if is_known else jnp
    prompt = xp.asarray(prompt)
    if not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise ValueError(f"prompt has dtype {prompt.dtype}, but must be token ids: write prompt.astype(jnp.int32)")
    if prompt.ndim == 0 or prompt.size == 0:
        raise ValueError(f"prompt has shape {prompt.shape}, but must hold at least one token, (..., P)")
    *batch, P = prompt.shape
    lengths = _checked_lengths(lengths, tuple(batch), P, xp)[..., None]
    if is_known:
        is_outside = (np.arange(P) < lengths) & ((prompt < 0) | (prompt >= vocab_size))
        check_vocabulary("prompt", prompt, is_outside, vocab_size)
    kept = xp.minimum(lengths, L)
    index = xp.arange(L, dtype=xp.int32).reshape((1,) * len(batch) + (L,))
    window = xp.take_along_axis(prompt, xp.clip(lengths - kept + index, 0, P - 1), axis=-1)
    window = xp.where(index < kept, window, xp.zeros((), prompt.dtype))
    if is_known:
        return Prompts(window.astype(np.int32), kept[..., 0], int(kept.max()))
    return Prompts(token_ids(window, vocab_size), kept[..., 0], min(P, L))


def _is_known(array: Any) -> bool:
    """Return whether an array can be read now, and lies in one place."""
    if isinstance(array, jax.core.Tracer):
        return False
    return not isinstance(array, Array) or len(array.sharding.device_set) == 1


def _checked_lengths(lengths: Any, batch: tuple[int, ...], P: int, xp: Any) -> Any:
    lengths = xp.full(batch, P, xp.int32) if lengths is None else xp.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"lengths has dtype {lengths.dtype}, but must be integers")
    numbers = known(lengths)
    if numbers is not None and not ((numbers >= 1) & (numbers <= P)).all():
        raise ValueError(f"lengths must be from 1 to {P}, the prompts' tokens, but are {lengths.tolist()}")
    if lengths.shape != batch:
        raise ValueError(f"lengths has shape {lengths.shape}, but must have one for each prompt, {batch}")
    return lengths.astype(xp.int32)


def prefill_width(longest: int, context_length: int) -> int:
    """Return to how many tokens prompts are padded: one of a few widths, so that few programs are compiled."""
    return min(max(16, 2 ** (longest - 1).bit_length()), context_length)


@functools.partial(jax.jit, static_argnums=(0, 1))
def start(model: GPT | Llama, width: int, params: Any, window: Array, lengths: Array) -> State:
    """Read the first `width` tokens of each window."""
    tokens = window[..., :width]
    logits, variables = model.apply({"params": params}, tokens, decode=True, lengths=lengths, mutable=["cache"])
    stopped = jnp.zeros(lengths.shape, bool)
    return State(window, lengths, _row(logits, lengths - 1), stopped, variables["cache"])


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def step(
    model: GPT | Llama, sampling: Sampling, may_be_full: bool, params: Any, state: State, key: Array
) -> tuple[State, Array]:
    """Draw a token for each prompt and read it; `may_be_full` says whether a sequence may have filled the context."""
    token, stopped = sample(state.logits, sampling, key), state.stopped
    if sampling.stop_token is not None:
        token = jnp.where(stopped, sampling.stop_token, token)
        stopped = stopped | (token == sampling.stop_token)
    window, lengths, is_full = _append(state, token)

    def read_token(cache: Any) -> tuple[Array, Any]:
        variables = {"params": params, "cache": cache}
        logits, updated = model.apply(variables, token[..., None], decode=True, mutable=["cache"])
        return logits[..., 0, :], updated["cache"]

    def read_window(cache: Any) -> tuple[Array, Any]:
        logits: Any = model.apply({"params": params}, window)
        return _row(logits, lengths - 1), cache

    if may_be_full:
        logits, cache = lax.cond(is_full.any(), read_window, read_token, state.cache)
    else:
        logits, cache = read_token(state.cache)  # the condition would copy the cache
    return State(window, lengths, logits, stopped, cache), token


def _append(state: State, token: Array) -> tuple[Array, Array, Array]:
    """Append a token to each window, which moves on where it is full; return windows, lengths and which were full."""
    L = state.window.shape[-1]
    is_full = state.lengths == L
    lengths = jnp.where(is_full, L, state.lengths + 1)
    window = jnp.where(is_full[..., None], jnp.roll(state.window, -1, axis=-1), state.window)
    places = jnp.arange(L, dtype=jnp.int32).reshape((1,) * lengths.ndim + (L,))
    return jnp.where(places == lengths[..., None] - 1, token[..., None], window), lengths, is_full


def _row(logits: Array, index: Array) -> Array:
    """Pick one token's logits in each example: `(..., T, vocab_size)` -> `(..., vocab_size)`."""
    return jnp.take_along_axis(logits, index[..., None, None], axis=-2)[..., 0, :]
