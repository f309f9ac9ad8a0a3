"""The stages as layers, from token vectors to token vectors, beside Flax's own layers with the same weights."""

from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxattn.benchmark.cases import Case
from jaxattn.benchmark.measure import Candidate, Comparison, compiled
from jaxattn.stages import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention,
    SimpleSelfAttention,
    parallel_from_stacked,
)


def compare_layers(case: Case) -> Iterator[Comparison]:
    """Time stages 1 to 3, and compare the two forms of stage 4 with Flax's layers; the case's mask does not matter."""
    width = case.H * case.D
    x_key, key = jax.random.split(jax.random.key(0))
    x = jax.random.normal(x_key, (case.B, case.T, width))
    setting = {"direction": case.direction, **{letter: getattr(case, letter) for letter in "BTHD"}}
    stages = {
        "1 SimpleSelfAttention": SimpleSelfAttention(),
        "2 SelfAttention": SelfAttention(width),
        "3 CausalAttention": CausalAttention(width),
    }
    for group, module in stages.items():
        candidate = _candidate("jaxattn", module.apply, module.init(key, x), x, case.backward)
        yield Comparison(group, setting, [candidate])

    stacked = MultiHeadAttentionWrapper(case.H, case.D)
    variables = stacked.init(key, x)
    params = parallel_from_stacked(variables["params"])
    layers = {
        "jaxattn, parallel": (MultiHeadAttention(case.H, width).apply, {"params": params}),
        "jaxattn, stacked": (stacked.apply, variables),
        "flax.linen": _flax_linen(case, params),
        "flax.nnx": _flax_nnx(case, params),
    }
    candidates = [_candidate(name, *layer, x, case.backward) for name, layer in layers.items()]
    yield Comparison("4 multi-head, causal", setting, candidates)


def _candidate(name: str, apply: Callable[..., Any], variables: Any, x: Array, backward: bool) -> Candidate:
    """Compile a layer; outputs and input gradients are compared, as the parameters differ in their form."""

    def output_and_gradients(variables: Any, x: Array) -> Any:
        output, vjp = jax.vjp(apply, variables, x)
        of_variables, of_x = vjp(output)
        return output, of_x, of_variables

    if backward:
        return compiled(name, output_and_gradients, variables, x, compared=lambda result: result[:2])
    return compiled(name, apply, variables, x)


def _flax_linen(case: Case, params: Any) -> tuple[Callable[..., Any], Any]:
    module = nn.MultiHeadDotProductAttention(case.H, use_bias=False)
    variables = {"params": {name: {"kernel": kernel} for name, kernel in _split_heads(case, params).items()}}
    mask = nn.make_causal_mask(jnp.ones((case.B, case.T)))
    return lambda variables, x: module.apply(variables, x, mask=mask), variables


def _flax_nnx(case: Case, params: Any) -> tuple[Callable[..., Any], Any]:
    module = nnx.MultiHeadAttention(case.H, case.H * case.D, use_bias=False, decode=False, rngs=nnx.Rngs(0))
    for name, kernel in _split_heads(case, params).items():
        getattr(module, name).kernel[...] = kernel
    definition, state = nnx.split(module)
    mask = nnx.make_causal_mask(jnp.ones((case.B, case.T)))
    return lambda state, x: nnx.merge(definition, state)(x, mask=mask), state


def _split_heads(case: Case, params: Any) -> dict[str, Any]:
    """Reshape kernels to Flax's form: `(width, H, D)`, and `(H, D, width)` of the output projection."""
    kernels = {name: params[name]["kernel"].reshape(-1, case.H, case.D) for name in ("query", "key", "value")}
    return kernels | {"out": params["out"]["kernel"].reshape(case.H, case.D, -1)}
