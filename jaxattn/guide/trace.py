"""Every step from token vectors to the output, by name, as the stages sow it."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxattn.extras import require
from jaxattn.layer import AttentionLayer
from jaxattn.stages import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention,
    SimpleSelfAttention,
)

MANY_HEADS = MultiHeadAttention | AttentionLayer
STAGES = SimpleSelfAttention | SelfAttention | CausalAttention | MultiHeadAttentionWrapper | MANY_HEADS

# The axes of each step, in the order of the computation. With several heads, steps have an axis "head" in front.
AXES = {
    "inputs": ("token", "feature"),
    "queries": ("token", "feature"),
    "keys": ("token", "feature"),
    "values": ("token", "feature"),
    "scores": ("query", "key"),
    "scaled": ("query", "key"),
    "mask": ("query", "key"),
    "masked": ("query", "key"),
    "weights": ("query", "key"),
    "kept_weights": ("query", "key"),
    "context": ("token", "feature"),
    "concatenation": ("token", "feature"),
    "output": ("token", "feature"),
}


@functools.partial(jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["stage"])
@dataclasses.dataclass(frozen=True)
class Trace:
    """The steps of one stage on one sequence, a pytree.

    Args:
        stage: the module's name.
        arrays: the steps by name, in the order of the computation.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import SimpleSelfAttention
        >>> from jaxattn.guide.trace import trace
        >>> steps = trace(SimpleSelfAttention(), {}, jnp.eye(3))
        >>> list(steps.arrays)
        ['inputs', 'scores', 'weights', 'context']
        >>> steps.axes("weights"), steps["weights"].shape
        (('query', 'key'), (3, 3))
    """

    stage: str
    arrays: dict[str, Array]

    def __getitem__(self, name: str) -> Array:
        if name not in self.arrays:
            raise KeyError(f"{name!r} is no step of {self.stage}: it has {', '.join(self.arrays)}")
        return self.arrays[name]

    def axes(self, name: str) -> tuple[str, ...]:
        """Name the axes of one array."""
        plain = AXES[name]
        return plain if self[name].ndim == len(plain) else ("head", *plain)

    def _repr_html_(self) -> str:
        """Draw each array in colour below its name, for notebooks."""
        treescope, parts = require("treescope", extra="guide"), [f"{self.stage}\n"]
        for name, array in self.arrays.items():
            labels = {number: f"{axis}: {array.shape[number]}" for number, axis in enumerate(self.axes(name))}
            *outer, rows, columns = labels
            figure = treescope.render_array(array, rows=[rows], columns=[*outer, columns], axis_labels=labels)
            parts += [treescope.figures.bolded(name), "\n", figure, "\n"]
        return str(treescope.figures.inline(*parts)._repr_html_())


def trace(module: nn.Module, variables: Any, x: Float[Array, "T d_in"], dropout_key: Array | None = None) -> Trace:
    """Run a stage on one sequence and collect its steps.

    Args:
        module: one of the five stages, or an `AttentionLayer`, whose queries and keys are those it compares.
        variables: its variables, `{"params": ...}`.
        x: token vectors `(T, d_in)`.
        dropout_key: turns dropout on, at the module's rate.

    Returns:
        `inputs`; `queries`, `keys`, `values`; `scores`; `scaled`; `mask`; `masked`, scaled scores with −∞ where masked;
        `weights`; with dropout `kept_weights`; `context`; and with several heads `concatenation` and `output`. Each
        stage has the steps that it computes.

    Raises:
        TypeError: the module is not one of the stages.
        ValueError: `x` is not one sequence.
    """
    x = jnp.asarray(x)
    if x.ndim != 2:
        raise ValueError(f"x has shape {x.shape}, but must be one sequence (T, d_in): write x[0]")
    if not isinstance(module, STAGES):
        raise TypeError(f"module is a {type(module).__name__}, but must be one of the five stages of jaxattn.stages")
    output, state = module.apply(variables, x, dropout_key is None, dropout_key, mutable=["intermediates"])
    steps = {"inputs": x, **_sown(module, state["intermediates"])}
    if "queries" in steps:
        steps["scaled"] = steps["scores"] * jnp.asarray(steps["queries"].shape[-1] ** -0.5, steps["scores"].dtype)
    if "kept_weights" in steps:
        steps["mask"] = jnp.tril(jnp.ones((len(x), len(x)), bool))
        steps["masked"] = jnp.where(steps["mask"], steps["scaled"], -jnp.inf)
    if dropout_key is None:
        steps.pop("kept_weights", None)
    if isinstance(module, MultiHeadAttentionWrapper | MANY_HEADS):
        # (H, T, D) -> (T, H * D)
        steps |= {"concatenation": jnp.hstack(list(steps["context"])), "output": output}
    return Trace(type(module).__name__, {name: steps[name] for name in AXES if name in steps})


def _sown(module: nn.Module, intermediates: Any) -> dict[str, Array]:
    """Take the sown steps out of their collection, with heads in front: `(H, T, D)` and `(H, T, T)`."""
    if isinstance(module, MultiHeadAttentionWrapper):
        head = CausalAttention(module.features)
        heads = [_sown(head, intermediates[f"heads_{number}"]) for number in range(module.num_heads)]
        return {name: jnp.stack([steps[name] for steps in heads]) for name in heads[0]}
    steps = {name: array for name, (array,) in intermediates.items()}
    if isinstance(module, MANY_HEADS):
        # (T, H, D) -> (H, T, D)
        steps |= {name: jnp.moveaxis(steps[name], 1, 0) for name in ("queries", "keys", "values", "context")}
    return steps
