"""Continue prompts with a GPT, token by token.

References:
    Build a Large Language Model (From Scratch), sections 4.7 and 5.3.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Int

from jaxattn.checks import check_key
from jaxattn.models.decoding import Prompts, make_prompts, start, step
from jaxattn.models.gpt import GPT
from jaxattn.models.sampling import Sampling


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
    """Continue prompts by `num_tokens` tokens; beyond the context, the model attends to the latest part.

    With the KV cache, a token costs one row of attention. Beyond the context, where all positions change, it costs a
    whole forward pass.

    Args:
        model: the GPT.
        params: its parameters, `variables["params"]`.
        prompt: token ids `(..., P)`, at least one in each.
        num_tokens: how many tokens to add.
        key: PRNG key; not needed at temperature 0.
        temperature: divides the logits; below 1 likely tokens become likelier, 0 always takes the most likely one.
        top_k: draw only from the k most likely tokens; None draws from all.
        top_p: draw only from the fewest tokens that hold this much probability; None draws from all.
        stop_token: once it is drawn, the rest is filled with it; None never stops.
        lengths: number of tokens in each prompt `(...)`, the rest is padding on the right; None has no padding.

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
    """
    sampling = Sampling(float(temperature), top_k, top_p, stop_token)
    key = _check(model, sampling, num_tokens, key)
    prompts = make_prompts(prompt, lengths, model.config.context_length)
    return _generate(model, sampling, num_tokens, prompts.longest, params, prompts.window, prompts.lengths, key)


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
    """Yield the tokens of `generate` one by one as they are drawn, until all prompts have stopped.

    The arguments and errors are those of `generate`.

    Returns:
        An iterator of token ids `(...)`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import GPT, GPTConfig, stream
        >>> model = GPT(GPTConfig(vocab_size=256, context_length=16, num_layers=1, num_heads=2, features=8))
        >>> params = model.init(jax.random.key(0), jnp.zeros(3, int))["params"]
        >>> len(list(stream(model, params, jnp.zeros(3, int), 5, temperature=0)))
        5
    """
    sampling = Sampling(float(temperature), top_k, top_p, stop_token)
    key = _check(model, sampling, num_tokens, key)
    # Arguments are checked here, at the call, and not when the first token is asked for.
    return _stream(model, sampling, num_tokens, params, make_prompts(prompt, lengths, model.config.context_length), key)


def _check(model: GPT, sampling: Sampling, num_tokens: int, key: Array | None) -> Array:
    """Check the options, and return the key."""
    if num_tokens < 0:
        raise ValueError(f"num_tokens={num_tokens} must not be negative: write num_tokens=100")
    sampling.check(model.config.vocab_size)
    return check_key("key", jax.random.key(0) if key is None and sampling.temperature == 0 else key)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _generate(
    model: GPT,
    sampling: Sampling,
    num_tokens: int,
    longest: int,
    params: Any,
    window: Array,
    lengths: Array,
    key: Array,
) -> Array:
    state, keys = start(model, params, Prompts(window, lengths, longest)), jax.random.split(key, num_tokens)
    fitting = min(num_tokens, max(model.config.context_length - longest, 0))
    inside, beyond = (functools.partial(step, model, sampling, may_be_full, params) for may_be_full in (False, True))
    state, tokens = lax.scan(inside, state, keys[:fitting])
    state, more_tokens = lax.scan(beyond, state, keys[fitting:])
    return jnp.moveaxis(jnp.concatenate([tokens, more_tokens]), 0, -1)  # (num_tokens, ...) -> (..., num_tokens)


def _stream(
    model: GPT, sampling: Sampling, num_tokens: int, params: Any, prompts: Prompts, key: Array
) -> Iterator[Array]:
    state = start(model, params, prompts)
    for number, step_key in enumerate(jax.random.split(key, num_tokens)):
        may_be_full = prompts.longest + number >= model.config.context_length
        state, token = step(model, sampling, may_be_full, params, state, step_key)
        yield token
        if sampling.stop_token is not None and state.stopped.all():
            return
