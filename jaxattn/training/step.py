"""One training step: how wrong the model is about every next byte, and a step of AdamW against it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int

from jaxattn.models.gpt import GPT


class TrainState(NamedTuple):
    """What a step changes."""

    params: Any
    optimizer_state: Any
    step: Array


def make_optimizer(steps: int, learning_rate: float) -> optax.GradientTransformation:
    """AdamW with clipped gradients; the rate warms up over a twentieth of the steps and decays on a cosine to a tenth.

    Weight decay pulls on matrices alone: biases and norms have no scale that it should shrink.
    """
    warmup = max(1, steps // 20)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup, max(steps, warmup + 1), learning_rate / 10
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            schedule, b2=0.99, weight_decay=0.1, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
        ),
    )


def init_state(model: GPT, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """Draw the parameters and start the optimizer."""
    params = jax.jit(model.init)(key, jnp.zeros(model.config.context_length, jnp.int32))["params"]
    return TrainState(params, jax.jit(optimizer.init)(params), jnp.zeros((), jnp.int32))


def next_token_loss(
    model: GPT, params: Any, tokens: Int[Array, "B length"], dropout_key: Array | None = None
) -> Float[Array, ""]:
    """Mean cross-entropy in nats of each token given those before it; with a key, every example drops other cells."""

    def loss(tokens: Int[Array, " length"], key: Array | None) -> Array:
        logits: Any = model.apply({"params": params}, tokens[:-1], key is None, key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:]).mean()

    keys = None if dropout_key is None else jax.random.split(dropout_key, len(tokens))
    return jax.vmap(loss)(tokens.astype(jnp.int32), keys).mean()


def make_step(
    model: GPT, optimizer: optax.GradientTransformation, key: Array
) -> Callable[[TrainState, Array], tuple[TrainState, Array]]:
    """Compile a step `(state, tokens) -> (state, loss)`, tokens `(B, context_length + 1)`; it takes its state over.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import GPT, GPTConfig
        >>> from jaxattn.training.step import init_state, make_optimizer, make_step
        >>> model, optimizer = GPT(GPTConfig(256, 8, 1, 2, 8)), make_optimizer(steps=100, learning_rate=1e-2)
        >>> state = init_state(model, optimizer, jax.random.key(0))
        >>> state, loss = make_step(model, optimizer, jax.random.key(1))(state, jnp.zeros((2, 9), jnp.uint8))
        >>> int(state.step)
        1
    """
    drops = model.config.dropout_rate > 0

    def step(state: TrainState, tokens: Array) -> tuple[TrainState, Array]:
        dropout_key = jax.random.fold_in(key, state.step) if drops else None
        loss, gradients = jax.value_and_grad(lambda params: next_token_loss(model, params, tokens, dropout_key))(
            state.params
        )
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
        return TrainState(optax.apply_updates(state.params, updates), optimizer_state, state.step + 1), loss

    return jax.jit(step, donate_argnums=0)
