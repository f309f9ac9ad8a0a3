"""Every number on the way from tokens to context vectors, by name, from the functions that the stages call."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxattn.extras import require
from jaxattn.functional import attention_scores, attention_weights, context_vectors, dropout
from jaxattn.stages import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention,
    SimpleSelfAttention,
)

# What each array's axes are; of stages with heads, all but the ends of the way have an axis "head" in front.
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
ENDS = ("inputs", "mask", "concatenation", "output")


@functools.partial(jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["stage"])
@dataclasses.dataclass(frozen=True)
class Trace:
    """The intermediates of one stage on one input, a pytree.

    Args:
        stage: the name of the module.
        arrays: the intermediates by name, in the order in which they are computed.

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
    """Run a stage on one sequence and keep every intermediate.

    Args:
        module: one of the five stages.
        variables: its variables, `{"params": ...}`.
        x: token vectors `(T, d_in)`.
        dropout_key: switches dropout on, at the module's rate.

    Returns:
        The intermediates: `inputs`; `query`, `key`, `value` as projected; `scores`; `scaled`; `mask`; `masked`, −inf
        where hidden; `weights`; with dropout `kept` and `dropped_weights`; `context`; for several heads `concatenation`
        and `output`. Each stage has those that it computes.

    Raises:
        TypeError: the module is none of the stages.
        ValueError: `x` is not one sequence.
        RuntimeError: the steps do not lead to what the module returns.

    References:
        Build a Large Language Model (From Scratch), chapter 3.
    """
    x = jnp.asarray(x)
    if x.ndim != 2:
        raise ValueError(f"x has shape {x.shape}, but must be one sequence (T, d_in): write x[0]")
    if isinstance(module, MultiHeadAttentionWrapper):
        return _stacked(module, variables, x, dropout_key)
    if not isinstance(module, SimpleSelfAttention | SelfAttention | CausalAttention | MultiHeadAttention):
        raise TypeError(f"module is a {type(module).__name__}, but must be one of the five stages of jaxattn.stages")
    passed: dict[str, Any] = {"inputs": x}

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        """Keep what the module's own layers take and give."""
        result = call(*args, **kwargs)
        if context.module.name in ("query", "key", "value"):
            passed[context.module.name] = result
        elif context.module.name == "out":
            passed["concatenation"] = args[0]
        return result

    with nn.intercept_methods(note):
        output, passed["weights"] = module.apply(variables, x, dropout_key is None, dropout_key, True)
    if isinstance(module, MultiHeadAttention):
        names = ("query", "key", "value", "concatenation")
        # (T, features) -> (H, T, D)
        heads = [jnp.moveaxis(passed[name].reshape(len(x), module.num_heads, -1), 1, 0) for name in names]
        passed |= dict(zip(("query", "key", "value", "context"), heads, strict=True)) | {"output": output}
    else:
        passed["context"] = output
    return Trace(type(module).__name__, _in_order(module, passed, dropout_key))


def _in_order(module: Any, passed: dict[str, Any], dropout_key: Array | None) -> dict[str, Array]:
    """Compute what lies between by the functions that the stage calls, and see that it leads to what came out."""
    simple, causal = isinstance(module, SimpleSelfAttention), isinstance(module, CausalAttention | MultiHeadAttention)
    x, weights = passed["inputs"], passed["weights"]
    query, key, value = (passed.get(name, x) for name in ("query", "key", "value"))
    arrays = {"inputs": x} | ({} if simple else {"queries": query, "keys": key, "values": value})
    arrays["scores"] = scores = attention_scores(query, key)  # (..., T, T)
    scale = 1.0 if simple else query.shape[-1] ** -0.5
    if not simple:
        arrays["scaled"] = scores * jnp.asarray(scale, scores.dtype)
    mask = None
    if causal:
        arrays["mask"] = mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        arrays["masked"] = jnp.where(mask, arrays["scaled"], -jnp.inf)
    arrays["weights"] = left = weights
    if causal and dropout_key is not None:
        arrays["kept_weights"] = left = dropout(weights, module.dropout_rate, dropout_key)
    arrays |= {name: passed[name] for name in ("context", "concatenation", "output") if name in passed}
    if not (
        _agree(attention_weights(scores, mask, scale=scale), weights)
        and _agree(context_vectors(left, value), arrays["context"])
    ):
        raise RuntimeError(f"the steps of {type(module).__name__} do not lead to what it returns")
    return arrays


def _stacked(module: MultiHeadAttentionWrapper, variables: Any, x: Array, dropout_key: Array | None) -> Trace:
    """Trace head after head, and put them side by side."""
    keys = [None] * module.num_heads if dropout_key is None else jax.random.split(dropout_key, module.num_heads)
    head = CausalAttention(module.features, module.dropout_rate, module.use_bias)
    heads = [{"params": variables["params"][f"heads_{number}"]} for number in range(module.num_heads)]
    traces = [trace(head, each, x, key).arrays for each, key in zip(heads, keys, strict=True)]
    arrays = {
        name: array if name in ENDS else jnp.stack([each[name] for each in traces]) for name, array in traces[0].items()
    }
    output: Any = module.apply(variables, x, dropout_key is None, dropout_key)
    arrays |= {"concatenation": output, "output": output}
    # (H, T, features) -> (T, num_heads * features)
    if not _agree(jnp.concatenate(list(arrays["context"]), axis=-1), output):
        raise RuntimeError("the steps of the heads do not lead to what MultiHeadAttentionWrapper returns")
    return Trace(type(module).__name__, arrays)


def _agree(came: Array, wanted: Array) -> bool:
    """Say whether two arrays are the same but for rounding, which in sums grows with the largest number."""
    wide = np.asarray(wanted, np.float64)
    rounding = float(jnp.finfo(wanted.dtype).eps) ** 0.5 * max(1.0, float(np.abs(wide).max(initial=0)))
    return np.allclose(np.asarray(came, np.float64), wide, rtol=0, atol=rounding)
