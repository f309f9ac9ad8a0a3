"""What a family of models says about one attention layer, and the tensors that are side by side in all families."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxattn.layer import AttentionLayer
from jaxattn.masks import Causal, Mask, SlidingWindow
from jaxattn.models.convert.tensors import PROJECTIONS, Params, Tensors
from jaxattn.models.convert.transformers.fields import Fields


class Recipe(NamedTuple):
    """How to make one layer.

    Args:
        path: of the module of attention in the model, "layers.3.self_attn." say.
        anchor: one tensor of the module, by its name there.
        fields: of the layer.
        params: takes the module's tensors, by their names there.
        shared: tensors of other modules that the layer needs: the name to take them by, and theirs in the model.
        module: the class of the layer.
    """

    path: str
    anchor: str
    fields: dict[str, Any]
    params: Callable[[Tensors], Params]
    shared: Mapping[str, str] = {}
    module: Callable[..., Any] = AttentionLayer


def dense(tensors: Tensors, name: str, d_in: int, d_out: int, use_bias: bool = False) -> Params:
    """Take a `torch.nn.Linear`, whose weight is `(d_out, d_in)`."""
    params: Params = {"kernel": jnp.asarray(tensors.take(f"{name}.weight", (d_out, d_in)).T)}
    return params | ({"bias": jnp.asarray(tensors.take(f"{name}.bias", (d_out,)))} if use_bias else {})


def linear_layers(tensors: Tensors, fields: Mapping[str, Any], names: tuple[str, str, str, str]) -> Params:
    """Take the projections of queries, keys, values and of the output, by the fields of an `AttentionLayer`."""
    width, D = fields["features"], fields["head_width"]
    queries, keys = fields["num_heads"] * D, fields.get("num_kv_heads", fields["num_heads"]) * D
    use_bias = fields.get("use_bias", False)
    params: Params = {
        kind: dense(tensors, name, width, d_out, use_bias)
        for kind, name, d_out in zip(PROJECTIONS, names[:3], (queries, keys, keys), strict=True)
    }
    return params | {"out": dense(tensors, names[3], queries, width, fields.get("use_out_bias", True))}


def scale(tensors: Tensors, name: str, width: int) -> Params:
    """Take the weight of a normalization."""
    return {"scale": jnp.asarray(tensors.take(f"{name}.weight", (width,)))}


def windowed(fields: Fields, layer_types: list[str], layer: int, size: int | None) -> Mask:
    """Return the causal mask of a layer: with a window where its type says so.

    Raises:
        ValueError: the type is unknown, or there is no window.
    """
    kind = layer_types[layer] if layer < len(layer_types) else None
    if kind == "full_attention":
        return Causal()
    if kind != "sliding_attention":
        raise ValueError(
            f"{fields.owner} has the layer type {kind!r} for layer {layer}, but supported are 'full_attention' and "
            "'sliding_attention'"
        )
    if size is None:
        raise ValueError(f"{fields.owner} has sliding_window=None, but layer {layer} is of the type {kind!r}")
    return SlidingWindow(size)
