"""One training step: the loss of every next token, its gradient, and an update by an optimizer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float

from jaxattn.models.gpt import GPT
from jaxattn.training.batches import Batch, loss_mask
from jaxattn.training.gradients import make_loss_and_gradients
from jaxattn.training.sharding import examples_per_device, state_sharding

# On a CPU, the activations of so many tokens stay in a core's caches until the backward pass; measured.
TOKENS_IN_CACHE = 256


class TrainState(NamedTuple):
    """What a step updates."""

    params: Any
    optimizer_state: Any
    step: Array


class Metrics(NamedTuple):
    """The mean loss before the step in nats, the gradient's norm before clipping, and the learning rate."""

    loss: Array
    gradient_norm: Array
    learning_rate: Array


def make_init(model: GPT, optimizer: optax.GradientTransformation) -> Callable[[Array], TrainState]:
    """Return a function from a PRNG key to the state before the first step."""
    model = GPT(model.config)  # without its ring, which would need a sequence

    def init(key: Array) -> TrainState:
        params = model.init(key, jnp.zeros(model.config.context_length, jnp.int32))["params"]
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    return init


def init_state(
    model: GPT, optimizer: optax.GradientTransformation, key: Array, mesh: Mesh, shard_parameters: bool = False
) -> TrainState:
    """Initialize parameters and optimizer, sharded over the mesh; the numbers are the same on every mesh."""
    init = make_init(model, optimizer)
    return jax.jit(init, out_shardings=state_sharding(mesh, jax.eval_shape(init, key), shard_parameters))(key)


def token_weights(batch: Batch) -> Float[Array, "B T"]:
    """Return the loss mask as numbers: 1 for each next token that has a loss, else 0."""
    counts = jnp.ones(batch.tokens[:, 1:].shape, bool) if batch.documents is None else loss_mask(batch.documents)
    return (counts if batch.is_real is None else counts & batch.is_real[:, None]).astype(jnp.float32)


def summed_loss(model: GPT, params: Any, batch: Batch, dropout_keys: Array | None = None) -> Float[Array, ""]:
    """Sum the cross-entropies, in nats, of all next tokens; each is predicted from its own document alone.

    The dropout keys `(B,)` are one per example, so that an example drops the same entries in any microbatch.
    """

    def example_losses(tokens: Array, documents: Array | None, key: Array | None) -> Array:
        documents = None if documents is None else documents[:-1]
        logits: Any = model.apply({"params": params}, tokens[:-1], key is None, key, documents=documents)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:])

    losses = jax.vmap(example_losses)(batch.tokens.astype(jnp.int32), batch.documents, dropout_keys)  # (B, T)
    return (losses * token_weights(batch)).sum()


def choose_microbatches(batch_size: int, context_length: int, mesh: Mesh, requested: int = 0) -> int:
    """Choose into how many microbatches each device splits its examples: on a CPU, so that one fits the caches.

    Raises:
        ValueError: the requested number does not divide the examples.
    """
    examples = examples_per_device(mesh, batch_size)
    if requested:
        if examples % requested:
            raise ValueError(
                f"--accumulate {requested} does not divide the {examples} sequences that a device has in a step"
            )
        return requested
    if mesh.devices.flat[0].platform != "cpu":
        return 1
    fitting = max(1, TOKENS_IN_CACHE // context_length)
    return min(n for n in range(1, examples + 1) if examples % n == 0 and examples // n <= fitting)


def make_step(
    model: GPT,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    key: Array,
    mesh: Mesh,
    microbatches: int,
    shard_parameters: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compile a step `(state, batch) -> (state, metrics)`, tokens `(B, context_length + 1)`; the state is donated."""
    has_dropout = model.config.dropout_rate > 0
    loss_and_gradients = make_loss_and_gradients(
        lambda params, examples: summed_loss(model, params, *examples), mesh, microbatches, shard_parameters
    )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = jax.random.split(jax.random.fold_in(key, state.step), len(batch.tokens)) if has_dropout else None
        sums = loss_and_gradients(state.params, (batch, keys))
        tokens = jnp.maximum(token_weights(batch).sum(), 1)
        loss, gradients = jax.tree.map(lambda total: total / tokens, sums)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
        metrics = Metrics(loss, optax.tree.norm(gradients), jnp.asarray(schedule(state.step), jnp.float32))
        new = TrainState(optax.apply_updates(state.params, updates), optimizer_state, state.step + 1)
        return jax.lax.with_sharding_constraint(new, state_sharding(mesh, new, shard_parameters)), metrics

    return jax.jit(step, donate_argnums=0)
