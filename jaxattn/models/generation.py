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

from jaxattn.checks import as_size, check_key, known
from jaxattn.models.decoding import Prompts, State, make_prompts, prefill_width, start, step
from jaxattn.models.gpt import GPT
from jaxattn.models.llama import Llama
from jaxattn.models.sampling import NO_TOKEN, Sampling


def generate(
    model: GPT | Llama,
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
        model: the GPT or Llama.
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
        ValueError: a prompt is empty or holds an id outside the vocabulary, a number is out of range, the key is
            missing, or the logits are NaN. Where prompts or parameters are traced, as under `jit`, the token is -1 in
            place of an error about ids or NaN.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import GPT, GPTConfig, generate
        >>> model = GPT(GPTConfig(vocab_size=256, context_length=16, num_layers=1, num_heads=2, features=8))
        >>> prompt = jnp.frombuffer(b"attention", jnp.uint8)
        >>> params = model.init(jax.random.key(0), prompt)["params"]
        >>> generate(model, params, prompt, 20, key=jax.random.key(1)).shape
        (20,)
    """
    sampling = Sampling.checked(model.config.vocab_size, temperature, top_k, top_p, stop_token)
    num_tokens, key = _checked(sampling, num_tokens, key)
    L = model.config.context_length
    prompts = make_prompts(prompt, lengths, L, model.config.vocab_size)
    if num_tokens == 0:
        return jnp.zeros((*prompts.lengths.shape, 0), jnp.int32)
    width, may_overflow = prefill_width(prompts.longest, L), prompts.longest + num_tokens > L
    tokens = _generate(model, sampling, num_tokens, width, may_overflow, params, prompts.window, prompts.lengths, key)
    _check_tokens(tokens)
    return tokens


def stream(
    model: GPT | Llama,
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
    sampling = Sampling.checked(model.config.vocab_size, temperature, top_k, top_p, stop_token)
    num_tokens, key = _checked(sampling, num_tokens, key)
    # Arguments are checked here, at the call, and not when the first token is asked for.
    prompts = make_prompts(prompt, lengths, model.config.context_length, model.config.vocab_size)
    return _stream(model, sampling, num_tokens, params, prompts, key)


def _checked(sampling: Sampling, num_tokens: Any, key: Any) -> tuple[int, Array]:
    """Check the number of tokens and the key, and return them."""
    num_tokens = as_size("num_tokens", num_tokens)
    if num_tokens < 0:
        raise ValueError(f"num_tokens={num_tokens} must not be negative: write num_tokens=100")
    return num_tokens, check_key("key", jax.random.key(0) if key is None and sampling.temperature == 0 else key)


def _check_tokens(tokens: Array) -> None:
    """Check that the logits were numbers, unless the tokens are traced."""
    numbers = known(tokens)
    if numbers is not None and (numbers == NO_TOKEN).any():
        raise ValueError(
            "the model's logits are NaN or infinite, so no token can be drawn: params holds NaN or infinity, or "
            "numbers so large that they overflow: write jax.tree.map(lambda p: jnp.isfinite(p).all(), params)"
        )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _generate(
    model: GPT | Llama,
    sampling: Sampling,
    num_tokens: int,
    width: int,
    may_overflow: bool,
    params: Any,
    window: Array,
    lengths: Array,
    key: Array,
) -> Array:
    """Generate in one program for all prompts of about one length: it depends on the width of the prefill alone."""
    state, keys = start(model, width, params, window, lengths), jax.random.split(key, num_tokens)

    def draw(may_be_full: bool, number: Array, carry: tuple[State, Array]) -> tuple[State, Array]:
        state, token = step(model, sampling, may_be_full, params, carry[0], keys[number])
        return state, carry[1].at[number].set(token)

    carry = state, jnp.zeros((num_tokens, *lengths.shape), jnp.int32)
    first, last, fitting = jnp.int32(0), jnp.int32(num_tokens), model.config.context_length - lengths.max()
    fitting = jnp.minimum(fitting, last) if may_overflow else last
    carry = lax.fori_loop(first, fitting, functools.partial(draw, False), carry)
    if may_overflow:
        carry = lax.fori_loop(fitting, last, functools.partial(draw, True), carry)
    return jnp.moveaxis(carry[1], 0, -1)  # (num_tokens, ...) -> (..., num_tokens)


def _stream(
    model: GPT | Llama, sampling: Sampling, num_tokens: int, params: Any, prompts: Prompts, key: Array
) -> Iterator[Array]:
    L = model.config.context_length
    state = start(model, prefill_width(prompts.longest, L), params, prompts.window, prompts.lengths)
    for number, step_key in enumerate(jax.random.split(key, num_tokens)):
        state, token = step(model, sampling, prompts.longest + number >= L, params, state, step_key)
        _check_tokens(token)
        yield token
        if sampling.stop_token is not None and state.stopped.all():
            return
