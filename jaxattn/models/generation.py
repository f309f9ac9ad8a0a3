"""From logits to text: one token after the other, each drawn from what the model expects next."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxattn.checks import check_key
from jaxattn.models.gpt import GPT


def generate(
    model: GPT,
    params: Any,
    prompt: Int[Array, " P"],
    num_tokens: int,
    *,
    key: Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Int[Array, " num_tokens"]:
    """Continue a prompt by `num_tokens` tokens; where text outgrows the context, the model sees the latest part.

    Args:
        model: the GPT.
        params: its parameters, `variables["params"]`.
        prompt: token ids `(P,)`, at least one.
        num_tokens: how many tokens to add.
        key: PRNG key of the draw; not needed at temperature 0.
        temperature: the logits are divided by it; below 1 the likely becomes likelier, 0 always takes the likeliest.
        top_k: draw from the k likeliest tokens alone; None from all.

    Returns:
        The new token ids `(num_tokens,)`.

    Raises:
        ValueError: the prompt is empty, a number is out of range, or the key is missing.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import GPT, GPTConfig, generate
        >>> model = GPT(GPTConfig(vocab_size=256, context_length=16, num_layers=1, num_heads=2, features=8))
        >>> prompt = jnp.frombuffer(b"attention", jnp.uint8)
        >>> params = model.init(jax.random.key(0), prompt)["params"]
        >>> generate(model, params, prompt, 20, key=jax.random.key(1)).shape
        (20,)

    References:
        Build a Large Language Model (From Scratch), sections 4.7 and 5.3; Fan et al. 2018 (top-k).
    """
    prompt = jnp.asarray(prompt, jnp.int32)
    if prompt.ndim != 1 or prompt.size == 0:
        raise ValueError(
            f"prompt has shape {prompt.shape}, but must hold at least one token, (P,): jax.vmap takes many"
        )
    if num_tokens < 0:
        raise ValueError(f"num_tokens={num_tokens} must not be negative: write num_tokens=100")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be 0 (always the likeliest) or above: write temperature=1.0")
    if top_k is not None and not 1 <= top_k <= model.config.vocab_size:
        raise ValueError(
            f"top_k={top_k} must lie in 1 … {model.config.vocab_size}, the vocabulary: write top_k=None for all"
        )
    if temperature == 0 and key is None:
        key = jax.random.key(0)
    length = min(prompt.size, model.config.context_length)
    window = jnp.zeros(model.config.context_length, jnp.int32).at[:length].set(prompt[-length:])
    return _generate(model, num_tokens, temperature, top_k, params, window, jnp.asarray(length), check_key("key", key))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _generate(
    model: GPT,
    num_tokens: int,
    temperature: float,
    top_k: int | None,
    params: Any,
    window: Array,
    length: Array,
    key: Array,
) -> Array:
    def step(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Array]:
        window, length = carry
        # What stands behind `length` is not seen: the model is causal.
        logits: Any = model.apply({"params": params}, window)
        token = _sample(logits[length - 1], temperature, top_k, key)
        full = length == window.size
        window = jnp.where(full, jnp.roll(window, -1), window)
        length = jnp.where(full, length, length + 1)
        return (window.at[length - 1].set(token), length), token

    return jax.lax.scan(step, (window, length), jax.random.split(key, num_tokens))[1]


def _sample(logits: Float[Array, " vocab_size"], temperature: float, top_k: int | None, key: Array) -> Array:
    if temperature == 0:
        return jnp.argmax(logits).astype(jnp.int32)
    if top_k is not None:
        logits = jnp.where(logits >= jax.lax.top_k(logits, top_k)[0][-1], logits, -jnp.inf)
    return jax.random.categorical(key, logits / temperature).astype(jnp.int32)
