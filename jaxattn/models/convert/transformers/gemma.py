"""Gemma 2 and 3: windows in most layers, a scale of their own; soft caps in Gemma 2, normalized heads in Gemma 3."""

from typing import Any

from jaxattn.models.convert.tensors import Params, Tensors
from jaxattn.models.convert.transformers.fields import Fields
from jaxattn.models.convert.transformers.llama import NAMES, heads
from jaxattn.models.convert.transformers.recipe import Recipe, linear_layers, scale, windowed
from jaxattn.models.convert.transformers.rope import rotary_of


def gemma2(fields: Fields, layer: int) -> Recipe:
    """Gemma 2: soft caps."""
    options, _ = _options(fields, layer, period=2)
    options |= {"rotary": rotary_of(fields), "soft_cap": fields.take("attn_logit_softcapping")}
    return Recipe(f"layers.{layer}.self_attn.", "q_proj.weight", options, lambda t: linear_layers(t, options, NAMES))


def gemma3(fields: Fields, layer: int) -> Recipe:
    """Gemma 3: normalized heads, and another base for layers with a window."""
    options, kind = _options(fields, layer, period=fields.size("sliding_window_pattern", 6))
    fields.require("attn_logit_softcapping")
    fields.ignore("mm_tokens_per_image boi_token_index eoi_token_index image_token_index vision_config")
    options |= {
        "rotary": rotary_of(fields, 1_000_000.0, kind),
        "normalize_heads": "rms_plus_one",
        "norm_epsilon": float(fields.take("rms_norm_eps", 1e-6)),
    }

    def params(tensors: Tensors) -> Params:
        norms = {f"{name}_norm": scale(tensors, f"{name[0]}_norm", options["head_width"]) for name in ("query", "key")}
        return linear_layers(tensors, options, NAMES) | norms

    return Recipe(f"layers.{layer}.self_attn.", "q_proj.weight", options, params)


def _options(fields: Fields, layer: int, period: int) -> tuple[dict[str, Any], str]:
    """Return the fields that both have, and the layer's type; without types, each `period`-th has no window."""
    fields.require("use_bidirectional_attention", False)
    types = fields.take("layer_types")
    if types is None:
        types = ["sliding_attention" if (number + 1) % period else "full_attention" for number in range(layer + 1)]
    use_bias = bool(fields.take("attention_bias", False))
    own = {
        "mask": windowed(fields, types, layer, fields.take("sliding_window", 4096)),
        "scale": float(fields.take("query_pre_attn_scalar", 256)) ** -0.5,
        "use_bias": use_bias,
        "use_out_bias": use_bias,
    }
    return heads(fields, 4, 256) | own, types[layer]
