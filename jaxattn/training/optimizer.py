"""What turns gradients into updates: AdamW as GPT-2's successors use it, and Muon, with their learning rates."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# The name of a stack of matrices begins so.
STACK = "stack"
# Of the polynomial that Muon iterates.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def cosine_schedule(steps: int, learning_rate: float) -> optax.Schedule:
    """Warm up during the first twentieth of the steps, then decay along a cosine to a tenth at the last one.

    The schedule takes the number of steps that are done. The first step already has a learning rate above 0.

    Example:
        >>> from jaxattn.training.optimizer import cosine_schedule
        >>> [round(float(cosine_schedule(40, 1.0)(done)), 2) for done in (0, 1, 20, 39)]
        [0.5, 1.0, 0.55, 0.1]
    """
    warmup = max(1, steps // 20)
    of_step = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, max(steps, warmup + 1), learning_rate / 10)
    return lambda done: of_step(done + 1)


def linear_schedule(steps: int, learning_rate: float) -> optax.Schedule:
    """Warm up during the first fiftieth of the steps, and decay along a line that reaches 0 after the last one.

    Example:
        >>> from jaxattn.training.optimizer import linear_schedule
        >>> [round(float(linear_schedule(100, 1.0)(done)), 3) for done in (0, 1, 50, 99)]
        [0.5, 0.99, 0.5, 0.01]
    """
    warmup = max(1, steps // 50)
    return lambda done: learning_rate * jnp.minimum((done + 1) / warmup, 1) * (steps - done) / steps


def adamw(schedule: optax.Schedule, mesh: Mesh) -> optax.GradientTransformation:
    """AdamW with clipped gradients; weight decay applies to matrices only, not to biases and norms."""
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            schedule, b2=0.99, weight_decay=0.1, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
        ),
    )


def muon(schedule: optax.Schedule, mesh: Mesh) -> optax.GradientTransformation:
    """Muon for the matrices of the blocks, with weight decay; Adam, at half the learning rate, for tables and vectors.

    Three Newton-Schulz steps in place of Muon's five cost less time, and no loss that could be measured.

    References:
        Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """
    of_matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    optimizer = optax.contrib.muon(
        schedule,
        ns_coeffs=jnp.array(NEWTON_SCHULZ, jnp.float32),  # in 64-bit mode, too
        ns_steps=3,
        weight_decay=0.1,
        adam_learning_rate=lambda done: schedule(done) / 2,
        adam_b1=0.8,
        adam_b2=0.95,
        muon_weight_dimension_numbers=lambda params: {
            name: of_matrix if name.startswith(STACK) else None for name in params
        },
    )
    return stack_matrices(optimizer, mesh)


def stack_matrices(optimizer: optax.GradientTransformation, mesh: Mesh) -> optax.GradientTransformation:
    """Let an optimizer see the blocks' matrices of equal shape as one array, `{"stack 128x512": (n, 128, 512)}`.

    So Muon orthogonalizes many matrices in one product, and each device its share of them. All other parameters have
    their dotted paths as names.
    """

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        stacked = None if params is None else _stack(params, mesh)
        updates, state = optimizer.update(_stack(gradients, mesh), state, stacked)
        return _unstack(updates, gradients), state

    return optax.GradientTransformation(lambda params: optimizer.init(_stack(params, mesh)), update)


def _stack(tree: Any, mesh: Mesh) -> dict[str, Array]:
    flat = flatten_dict(tree)
    stacked = {
        name: jnp.stack([flat[path] for path in paths]) if name.startswith(STACK) else flat[paths[0]]
        for name, paths in _groups(flat).items()
    }
    shares = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: jax.lax.with_sharding_constraint(array, shares)
        if name.startswith(STACK) and len(array) % mesh.shape["data"] == 0
        else array
        for name, array in stacked.items()
    }


def _unstack(stacked: Mapping[str, Array], like: Any) -> Any:
    flat: dict[tuple[str, ...], Array] = {}
    for name, paths in _groups(flatten_dict(like)).items():
        arrays = stacked[name] if name.startswith(STACK) else [stacked[name]]
        flat |= dict(zip(paths, arrays, strict=True))
    return unflatten_dict(flat)


def _groups(flat: Mapping[tuple[str, ...], Array]) -> dict[str, list[tuple[str, ...]]]:
    """Return the paths of the parameters in each stack, and of each other parameter."""
    groups: dict[str, list[tuple[str, ...]]] = {}
    for path, array in flat.items():
        is_matrix = path[0].startswith("block_") and array.ndim == 2
        name = f"{STACK} {array.shape[0]}x{array.shape[1]}" if is_matrix else ".".join(path)
        groups.setdefault(name, []).append(path)
    return groups
