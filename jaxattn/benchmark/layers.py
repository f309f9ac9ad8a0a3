"""The stages as layers, from token vectors to token vectors, beside Flax's own layers with the same weights."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxattn.benchmark.measure import Candidate, compiled
from jaxattn.stages import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention,
    SimpleSelfAttention,
    parallel_from_stacked,
)

Groups = dict[str, list[Candidate]]


def layer_groups(batch: int, length: int, num_heads: int, head_features: int, backward: bool) -> Groups:
    """Return what is compared with what: the candidates of a group compute the same numbers."""
    width = num_heads * head_features
    x_key, key = jax.random.split(jax.random.key(0))
    x = jax.random.normal(x_key, (batch, length, width))
    stages = {
        "1 SimpleSelfAttention": SimpleSelfAttention(),
        "2 SelfAttention": SelfAttention(width),
        "3 CausalAttention": CausalAttention(width),
    }
    run = _with_gradients if backward else lambda function: function
    groups = {name: [_layer("jaxattn", module.apply, module.init(key, x), x, run)] for name, module in stages.items()}

    stacked = MultiHeadAttentionWrapper(num_heads, head_features)
    variables = stacked.init(key, x)
    params = parallel_from_stacked(variables["params"])
    groups["4 multi-head, causal"] = [
        _layer("jaxattn, parallel", MultiHeadAttention(num_heads, width).apply, {"params": params}, x, run),
        _layer("jaxattn, stacked", stacked.apply, variables, x, run),
        _flax_linen(num_heads, params, x, run),
        _flax_nnx(num_heads, params, x, run),
    ]
    return groups


def _with_gradients(function: Callable[..., Array]) -> Callable:
    """Return the output and the gradients of half its squares' sum by every argument."""

    def both(*arguments: Array) -> Any:
        output, pull = jax.vjp(function, *arguments)
        return output, pull(output)

    return both


def _layer(name: str, apply: Callable, variables: Any, x: Array, run: Callable) -> Candidate:
    """Time a layer; its output and its input's gradient are compared, its parameters' gradients only computed."""

    def shared(result: Any) -> Any:
        return result if isinstance(result, Array) else (result[0], result[1][1])

    return compiled(name, run(apply), variables, x, compared=shared)


def _split_heads(num_heads: int, params: Any) -> dict[str, Any]:
    width = params["out"]["kernel"].shape[0]
    heads = (num_heads, width // num_heads)
    kernels = {name: params[name]["kernel"].reshape(-1, *heads) for name in ("query", "key", "value")}
    return kernels | {"out": params["out"]["kernel"].reshape(*heads, width)}


def _flax_linen(num_heads: int, params: Any, x: Array, run: Callable) -> Candidate:
    module = nn.MultiHeadDotProductAttention(num_heads, use_bias=False)
    variables = {"params": {name: {"kernel": kernel} for name, kernel in _split_heads(num_heads, params).items()}}
    mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
    return _layer("flax.linen", lambda variables, x: module.apply(variables, x, mask=mask), variables, x, run)


def _flax_nnx(num_heads: int, params: Any, x: Array, run: Callable) -> Candidate:
    width = x.shape[-1]
    module = nnx.MultiHeadAttention(num_heads, width, use_bias=False, decode=False, rngs=nnx.Rngs(0))
    for name, kernel in _split_heads(num_heads, params).items():
        getattr(module, name).kernel[...] = kernel
    definition, state = nnx.split(module)
    mask = nnx.make_causal_mask(jnp.ones(x.shape[:2]))
    return _layer("flax.nnx", lambda state, x: nnx.merge(definition, state)(x, mask=mask), state, x, run)
