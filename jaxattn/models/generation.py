"""From logits to text: one token after the other, each drawn from what the model expects next."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from jaxattn.checks import check_key
from jaxattn.models.gpt import GPT


class _Draw(NamedTuple):
    """How a token is drawn, and when to stop; fixed when the step is compiled."""

    temperature: float
    top_k: int | None
    top_p: float | None
    stop_token: int | None


class _State(NamedTuple):
    """What the next step needs: the latest tokens, how many they are, what is expected next, and keys and values."""

    window: Int[Array, "*batch L"]
    length: Int[Array, "*batch"]
    logits: Float[Array, "*batch vocab_size"]
    stopped: Array
    cache: Any


def generate(
    model: GPT,
    params: Any,
    prompt: Int[Array, "*batch P"],
    num_tokens: int,
    *,
    key: Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token: int | None = None,
    lengths: Int[Array, "*batch"] | None = None,
) -> Int[Array, "*batch num_tokens"]:
    """Continue prompts by `num_tokens` tokens; where text outgrows the context, the model sees the latest part.

    Keys and values are kept, so a token costs one row of attention; beyond the context, where every position changes,
    it costs a whole forward pass.

    Args:
        model: the GPT.
        params: its parameters, `variables["params"]`.
        prompt: token ids `(..., P)`, at least one in each.
        num_tokens: how many tokens to add.
        key: PRNG key of the draw; not needed at temperature 0.
        temperature: the logits are divided by it; below 1 the likely becomes likelier, 0 always takes the likeliest.
        top_k: draw from the k likeliest tokens alone; None from all.
        top_p: draw from the fewest tokens that hold this share of the probability; None from all.
        stop_token: where it is drawn, the rest is filled with it; None never stops.
        lengths: how many tokens of each prompt are real, `(...)`; the rest is padding, behind. None is all.

    Returns:
        The new token ids `(..., num_tokens)`.

    Raises:
        ValueError: a prompt is empty, a number is out of range, or the key is missing.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import GPT, GPTConfig, generate
        >>> model = GPT(GPTConfig(vocab_size=256, context_length=16, num_layers=1, num_heads=2, features=8))
        >>> prompt = jnp.frombuffer(b"attention", jnp.uint8)
        >>> params = model.init(jax.random.key(0), prompt)["params"]
        >>> generate(model, params, prompt, 20, key=jax.random.key(1)).shape
        (20,)

    References:
        Build a Large Language Model (From Scratch), sections 4.7 and 5.3; Fan et al. 2018 (top-k); Holtzman et al.
        2020 (top-p).
    """
    draw, key = _check(model, num_tokens, temperature, top_k, top_p, stop_token, key)
    window, length, P = _window(model, prompt, lengths)
    return _generate(model, draw, num_tokens, P, params, window, length, key)


def stream(
    model: GPT,
    params: Any,
    prompt: Int[Array, "*batch P"],
    num_tokens: int,
    *,
    key: Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token: int | None = None,
    lengths: Int[Array, "*batch"] | None = None,
) -> Iterator[Int[Array, "*batch"]]:
    """Yield the tokens that `generate` returns, each as soon as it is drawn, and end where all prompts have stopped.

    Args:
        model: this and the others as in `generate`.
        params: as there.
        prompt: as there.
        num_tokens: as there.
        key: as there.
        temperature: as there.
        top_k: as there.
        top_p: as there.
        stop_token: as there.
        lengths: as there.

    Returns:
        An iterator of token ids `(...)`.

    Raises:
        ValueError: as there.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import GPT, GPTConfig, stream
        >>> model = GPT(GPTConfig(vocab_size=256, context_length=16, num_layers=1, num_heads=2, features=8))
        >>> params = model.init(jax.random.key(0), jnp.zeros(3, int))["params"]
        >>> len(list(stream(model, params, jnp.zeros(3, int), 5, temperature=0)))
        5
    """
    draw, key = _check(model, num_tokens, temperature, top_k, top_p, stop_token, key)
    window, length, P = _window(model, prompt, lengths)

    def tokens() -> Iterator[Array]:
        state = _start(model, _width(model, P), params, window, length)
        for number, step_key in enumerate(jax.random.split(key, num_tokens)):
            asks = P + number >= model.config.context_length
            state, token = _step(model, draw, asks, params, state, step_key)
            yield token
            if stop_token is not None and state.stopped.all():
                return

    return tokens()


def _check(
    model: GPT,
    num_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    stop_token: int | None,
    key: Any,
) -> tuple[_Draw, Array]:
    vocab_size = model.config.vocab_size
    if num_tokens < 0:
        raise ValueError(f"num_tokens={num_tokens} must not be negative: write num_tokens=100")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be 0 (always the likeliest) or above: write temperature=1.0")
    if top_k is not None and not 1 <= top_k <= vocab_size:
        raise ValueError(f"top_k={top_k} must lie in 1 … {vocab_size}, the vocabulary: write top_k=None for all")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must lie above 0 and up to 1, all the probability: write top_p=None for all")
    if stop_token is not None and not 0 <= stop_token < vocab_size:
        raise ValueError(f"stop_token={stop_token} must lie in 0 … {vocab_size - 1}: write stop_token=None for none")
    if temperature == 0 and key is None:
        key = jax.random.key(0)
    return _Draw(float(temperature), top_k, top_p, stop_token), check_key("key", key)


def _window(model: GPT, prompt: Any, lengths: Any) -> tuple[Array, Array, int]:
    """Lay the latest part of each prompt out from the left of the context: `(..., L)`, their lengths, the longest."""
    prompt, L = jnp.asarray(prompt), model.config.context_length
    if not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise ValueError(f"prompt has dtype {prompt.dtype}, but must be token ids: write prompt.astype(jnp.int32)")
    prompt = prompt.astype(jnp.int32)
    if prompt.ndim == 0 or prompt.size == 0:
        raise ValueError(f"prompt has shape {prompt.shape}, but must hold at least one token, (..., P)")
    *batch, P = prompt.shape
    lengths = jnp.full(batch, P, jnp.int32) if lengths is None else jnp.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"lengths has dtype {lengths.dtype}, but must be whole numbers")
    if not isinstance(lengths, jax.core.Tracer) and not ((lengths >= 1) & (lengths <= P)).all():
        raise ValueError(f"lengths must lie in 1 … {P}, the prompts' tokens, and are {lengths.tolist()}")
    lengths = lengths.astype(jnp.int32)
    if lengths.shape != tuple(batch):
        raise ValueError(f"lengths has shape {lengths.shape}, but there is one for each prompt, {tuple(batch)}")
    kept = jnp.minimum(lengths, L)
    places = (lengths - kept)[..., None] + jnp.arange(L).reshape((1,) * len(batch) + (L,))
    return jnp.take_along_axis(prompt, jnp.clip(places, 0, P - 1), axis=-1), kept, min(P, L)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _generate(
    model: GPT, draw: _Draw, num_tokens: int, P: int, params: Any, window: Array, length: Array, key: Array
) -> Array:
    state, keys = _start(model, _width(model, P), params, window, length), jax.random.split(key, num_tokens)
    # As long as no prompt can have filled the context, a step need not ask; asking would copy the cache.
    sure = min(num_tokens, max(model.config.context_length - P, 0))
    first, rest = (functools.partial(_step, model, draw, asks, params) for asks in (False, True))
    state, tokens = lax.scan(first, state, keys[:sure])
    state, more = lax.scan(rest, state, keys[sure:])
    return jnp.moveaxis(jnp.concatenate([tokens, more]), 0, -1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(model: GPT, width: int, params: Any, window: Array, length: Array) -> _State:
    """Read the prompts, of which the longest is no longer than `width`."""
    read = window[..., :width]
    logits, kept = model.apply({"params": params}, read, decode=True, lengths=length, mutable=["cache"])
    return _State(window, length, _row(logits, length - 1), jnp.zeros(length.shape, bool), kept["cache"])


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _step(model: GPT, draw: _Draw, asks: bool, params: Any, state: _State, key: Array) -> tuple[_State, Array]:
    """Draw a token for each prompt and read it; `asks` whether a context is full."""
    token = _sample(state.logits, draw, key)
    stopped = state.stopped
    if draw.stop_token is not None:
        token = jnp.where(stopped, draw.stop_token, token)
        stopped = stopped | (token == draw.stop_token)
    L = state.window.shape[-1]
    full = state.length == L
    length = jnp.where(full, L, state.length + 1)
    window = jnp.where(full[..., None], jnp.roll(state.window, -1, axis=-1), state.window)
    places = jnp.arange(L).reshape((1,) * length.ndim + (L,))
    window = jnp.where(places == length[..., None] - 1, token[..., None], window)

    def read_one(cache: Any) -> tuple[Array, Any]:
        variables = {"params": params, "cache": cache}
        logits, kept = model.apply(variables, token[..., None], decode=True, mutable=["cache"])
        return logits[..., 0, :], kept["cache"]

    def read_again(cache: Any) -> tuple[Array, Any]:
        # The window has moved on, and with it every token's position.
        logits: Any = model.apply({"params": params}, window)
        return _row(logits, length - 1), cache

    logits, cache = lax.cond(full.any(), read_again, read_one, state.cache) if asks else read_one(state.cache)
    return _State(window, length, logits, stopped, cache), token


def _width(model: GPT, P: int) -> int:
    """Return one of a few widths, so that few programs are compiled."""
    return min(max(16, 2 ** (P - 1).bit_length()), model.config.context_length)


def _row(logits: Array, place: Array) -> Array:
    return jnp.take_along_axis(logits, place[..., None, None], axis=-2)[..., 0, :]


def _sample(logits: Float[Array, "*batch vocab_size"], draw: _Draw, key: Array) -> Int[Array, "*batch"]:
    if draw.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    # Of the smallest temperatures, only the likeliest is left, and nothing overflows upwards.
    logits = (logits - logits.max(-1, keepdims=True)) / max(draw.temperature, 1e-30)
    if draw.top_k is not None:
        logits = jnp.where(logits >= lax.top_k(logits, draw.top_k)[0][..., -1:], logits, -jnp.inf)
    if draw.top_p is not None:
        # A token stays if those likelier than it hold less than the share, so at least one does.
        order = jnp.flip(jnp.argsort(logits, axis=-1), axis=-1)
        sorted_share = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
        before = jnp.cumsum(sorted_share, axis=-1) - sorted_share
        stays = jnp.take_along_axis(before < draw.top_p, jnp.argsort(order, axis=-1), axis=-1)
        logits = jnp.where(stays, logits, -jnp.inf)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)
