"""Attention layers of transformers' models, one file a family, by the names of their fields and tensors there."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxattn.masks import Causal
from jaxattn.models.convert.files import read_tensors
from jaxattn.models.convert.tensors import Params, Tensors
from jaxattn.models.convert.transformers.bert import bert
from jaxattn.models.convert.transformers.deepseek import deepseek_v2, deepseek_v3
from jaxattn.models.convert.transformers.fields import Fields, as_mapping
from jaxattn.models.convert.transformers.gemma import gemma2, gemma3
from jaxattn.models.convert.transformers.gpt2 import gpt2
from jaxattn.models.convert.transformers.gpt_oss import gpt_oss
from jaxattn.models.convert.transformers.llama import llama, mistral, qwen2, qwen3
from jaxattn.models.convert.transformers.recipe import Recipe
from jaxattn.models.convert.transformers.t5 import t5

FAMILIES: dict[str, Callable[..., Recipe]] = {
    "bert": bert,
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "gemma2": gemma2,
    "gemma3_text": gemma3,
    "gpt2": gpt2,
    "gpt_oss": gpt_oss,
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "t5": t5,
}
# What the names of tensors begin with, depending on the class of the model.
ROOTS = ("", "model.", "transformer.", "bert.", "language_model.", "language_model.model.", "model.language_model.")
LAYERS = {"gpt2": "n_layer", "t5": "num_layers"}
# Families whose models have several kinds of attention in a layer.
PARTS: dict[str, tuple[str | None, ...]] = {
    "bert": (None, "cross"),
    "gpt2": (None, "cross"),
    "t5": ("encoder", "decoder", "cross"),
}


def from_transformers(
    config: Any, state_dict: Mapping[str, Any] | str | Path, layer: int = 0, *, part: str | None = None, **fields: Any
) -> tuple[Any, Params]:
    """Convert one attention layer of a transformers model into a layer here and its parameters.

    Args:
        config: the model's configuration, an object or a dictionary; its `model_type` is one of `FAMILIES`.
        state_dict: the model's tensors, or those of the module of attention alone, of PyTorch, NumPy or JAX; or the
            directory of its safetensors files.
        layer: the number of the layer, from 0.
        part: in T5, "encoder", "decoder" or "cross"; in GPT-2 and BERT with cross-attention, "cross" is that.
        fields: further fields of the layer, such as `dtype`, in place of those of the configuration. By default,
            `cache_length` is the longest sequence that the model is for.

    Returns:
        An `AttentionLayer`, or a `LatentAttention` for DeepSeek, and its parameters: `layer.apply({"params": params},
        x)` computes what the module computes, with its mask. T5's relative bias, which its layers share, is in each.

    Raises:
        ValueError: the configuration describes what the layer does not compute, or a tensor is missing, left over, or
            of the wrong shape or type.

    Example:
        >>> import numpy as np
        >>> from jaxattn.models.convert import from_transformers
        >>> config = {"model_type": "llama", "hidden_size": 4, "num_attention_heads": 2, "rope_theta": 10_000.0}
        >>> tensors = {f"model.layers.3.self_attn.{name}_proj.weight": np.ones((4, 4)) for name in "qkvo"}
        >>> layer, params = from_transformers(config, tensors, layer=3)
        >>> layer.rotary.base, params["out"]["kernel"].shape
        (10000.0, (4, 4))
    """
    recipe = recipe_of(as_mapping(config), layer, part)
    tensors = _module_tensors(recipe, state_dict, layer)
    params = recipe.params(tensors)
    tensors.finish()
    if fields.get("rolling_cache"):
        fields = {"cache_length": None} | fields
    return recipe.module(**recipe.fields | fields), params


def recipe_of(config: Mapping[str, Any], layer: int, part: str | None = None) -> Recipe:
    """Return what a configuration says about a layer.

    Raises:
        ValueError: it describes what the layer does not compute.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"config has model_type={kind!r}, but supported are {', '.join(sorted(FAMILIES))}")
    parts = PARTS.get(kind, (None,))
    if part not in parts:
        allowed = ", ".join(map(repr, parts))
        raise ValueError(f"part={part!r} of a {kind} must be {allowed}: write part={parts[0]!r}")
    name = "num_decoder_layers" if part in ("decoder", "cross") and config.get("num_decoder_layers") else None
    count = config.get(name or LAYERS.get(kind, "num_hidden_layers"))
    if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0 or (count is not None and layer >= count):
        raise ValueError(f"layer={layer!r} must be an integer from 0" + ("" if count is None else f" to {count - 1}"))
    fields = Fields(f"the configuration of a {kind}", config)
    recipe = FAMILIES[kind](fields, layer, part) if kind in PARTS else FAMILIES[kind](fields, layer)
    if recipe.fields.get("mask", Causal()) is None:
        fields.ignore("is_causal")
    else:
        fields.require("is_causal", True)  # False would make the model's mask let everyone attend to everyone
    fields.finish()
    return recipe


def _module_tensors(recipe: Recipe, state_dict: Mapping[str, Any] | str | Path, layer: int) -> Tensors:
    """Return the tensors of the layer's module, by their names there."""
    if isinstance(state_dict, str | Path):
        wanted = (recipe.path, *recipe.shared.values())
        _, state_dict = read_tensors(Path(state_dict), lambda name: any(part in name for part in wanted))
    root = next((root for root in ROOTS if root + recipe.path + recipe.anchor in state_dict), None)
    if root is None:
        if recipe.anchor in state_dict:
            return Tensors(state_dict)
        some = ", ".join(sorted(state_dict)[:4]) or "nothing"
        raise ValueError(f"the tensor {recipe.path}{recipe.anchor} of layer {layer} is missing; there are {some}")
    path = root + recipe.path
    tensors = {name.removeprefix(path): tensor for name, tensor in state_dict.items() if name.startswith(path)}
    shared = {short: state_dict[root + name] for short, name in recipe.shared.items() if root + name in state_dict}
    return Tensors(tensors | shared)
