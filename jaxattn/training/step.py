"""One training step: how wrong the model is about every next token, and a step of AdamW against it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float

from jaxattn.models.gpt import GPT
from jaxattn.training.devices import lay_out, on_every_device
from jaxattn.training.text import Batch

# On a CPU, what so many tokens leave behind for the backward pass stays in a core's caches; measured.
TOKENS_IN_CACHE = 256


class TrainState(NamedTuple):
    """What a step changes."""

    params: Any
    optimizer_state: Any
    step: Array


class Measures(NamedTuple):
    """What a step tells: the loss before it in nats, the gradient's norm before clipping, the learning rate."""

    loss: Array
    gradient_norm: Array
    learning_rate: Array


def make_schedule(steps: int, learning_rate: float) -> optax.Schedule:
    """Warm up over a twentieth of the steps, then decay on a cosine to a tenth."""
    warmup = max(1, steps // 20)
    return optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, max(steps, warmup + 1), learning_rate / 10)


def make_optimizer(schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW with clipped gradients.

    Weight decay pulls on matrices alone: biases and norms have no scale that it should shrink.
    """
    matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.99, weight_decay=0.1, mask=matrices),
    )


def init_state(model: GPT, optimizer: optax.GradientTransformation, key: Array, mesh: Mesh) -> TrainState:
    """Draw the parameters and start the optimizer, laid out over the mesh; the same numbers on every mesh."""

    def init(key: Array) -> TrainState:
        params = model.init(key, jnp.zeros(model.config.context_length, jnp.int32))["params"]
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    model = GPT(model.config)
    return jax.jit(init, out_shardings=lay_out(mesh, jax.eval_shape(init, key)))(key)


def counted(batch: Batch) -> Float[Array, "B T"]:
    """Say with 1 and 0 which of the next tokens count: those of the same document, and no padding."""
    if batch.documents is None:
        return jnp.ones(batch.tokens[:, 1:].shape, jnp.float32)
    here, following = batch.documents[:, :-1], batch.documents[:, 1:]
    return ((here == following) & (following > 0)).astype(jnp.float32)


def summed_loss(model: GPT, params: Any, batch: Batch, dropout_keys: Array | None = None) -> Float[Array, ""]:
    """Sum the cross-entropies, in nats, of all tokens that count, each given those before it in its document.

    With keys `(B,)`, each example drops its own cells.
    """

    def losses(tokens: Array, documents: Array | None, key: Array | None) -> Array:
        documents = None if documents is None else documents[:-1]
        logits: Any = model.apply({"params": params}, tokens[:-1], key is None, key, documents=documents)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:])

    each = jax.vmap(losses)(batch.tokens.astype(jnp.int32), batch.documents, dropout_keys)  # (B, T)
    return (each * counted(batch)).sum()


def choose_parts(batch_size: int, context_length: int, mesh: Mesh) -> int:
    """Choose in how many parts each device computes its share of the batch: one, but on a CPU what fits its caches.

    Example:
        >>> import jax
        >>> from jaxattn.training.step import choose_parts
        >>> choose_parts(32, 128, jax.make_mesh((1, 1, 1), ("data", "model", "seq")))  # on a CPU
        16
    """
    share = batch_size // mesh.shape["data"]
    if mesh.devices.flat[0].platform != "cpu":
        return 1
    fitting = max(1, TOKENS_IN_CACHE // context_length)
    return min(parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= fitting)


def make_step(
    model: GPT, schedule: optax.Schedule, key: Array, mesh: Mesh, parts: int
) -> Callable[[TrainState, Batch], tuple[TrainState, Measures]]:
    """Compile a step `(state, batch) -> (state, measures)`, tokens `(B, context_length + 1)`; it takes its state over.

    Every device computes its share of the batch in so many parts, one after the other, and adds up their gradients.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import GPT, GPTConfig
        >>> from jaxattn.training.devices import make_mesh
        >>> from jaxattn.training.step import init_state, make_optimizer, make_schedule, make_step
        >>> from jaxattn.training.text import Batch
        >>> model, schedule = GPT(GPTConfig(256, 8, 1, 2, 8)), make_schedule(steps=100, learning_rate=1e-2)
        >>> mesh = make_mesh({"data": 1}, batch_size=2, heads=2, context_length=8)
        >>> state = init_state(model, make_optimizer(schedule), jax.random.key(0), mesh)
        >>> step = make_step(model, schedule, jax.random.key(1), mesh, parts=1)
        >>> state, measures = step(state, Batch(jnp.zeros((2, 9), jnp.uint8)))
        >>> int(state.step)
        1
    """
    optimizer, drops, groups = make_optimizer(schedule), model.config.dropout_rate > 0, mesh.shape["data"]

    def share(params: Any, cut: tuple[Batch, Array | None]) -> tuple[Array, Any]:
        """Add up losses and gradients over the parts `(parts, B / groups / parts, ...)` of one device's share."""

        def part(total: Any, now: tuple[Batch, Array | None]) -> Any:
            result = jax.value_and_grad(lambda params: summed_loss(model, params, *now))(params)
            return jax.tree.map(jnp.add, total, result), None

        zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(part, zeros, cut)[0]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Measures]:
        keys = jax.random.split(jax.random.fold_in(key, state.step), len(batch.tokens)) if drops else None
        # (B, ...) -> (groups, parts, B / groups / parts, ...); each device has its own share already
        cut = jax.tree.map(lambda array: array.reshape(groups, parts, -1, *array.shape[1:]), (batch, keys))
        shares = jax.vmap(share, in_axes=(None, 0), spmd_axis_name="data")(state.params, cut)
        number = jnp.maximum(counted(batch).sum(), 1)
        loss, gradients = jax.tree.map(lambda each: each.sum(0) / number, shares)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
        measures = Measures(loss, optax.tree.norm(gradients), jnp.asarray(schedule(state.step), jnp.float32))
        new = TrainState(optax.apply_updates(state.params, updates), optimizer_state, state.step + 1)
        return jax.lax.with_sharding_constraint(new, lay_out(mesh, new)), measures

    return jax.jit(step, donate_argnums=0)


def make_evaluation(model: GPT, mesh: Mesh) -> Callable[[Any, Batch], Array]:
    """Compile `(params, batches) -> mean loss` over batches stacked along a first axis."""

    def mean_loss(params: Any, batches: Batch) -> Array:
        losses = jax.lax.map(
            lambda batch: jnp.stack([summed_loss(model, params, batch), counted(batch).sum()]), batches
        )
        total, number = losses.sum(0)
        return total / jnp.maximum(number, 1)

    return jax.jit(mean_loss, out_shardings=on_every_device(mesh))
