"""Llama, Mistral, Qwen2 and Qwen3: causal attention with rotary positions and KV heads."""

from typing import Any

from jaxattn.masks import Causal, Mask, SlidingWindow
from jaxattn.models.convert.tensors import Params, Tensors
from jaxattn.models.convert.transformers.fields import Fields
from jaxattn.models.convert.transformers.recipe import Recipe, linear_layers, scale, windowed
from jaxattn.models.convert.transformers.rope import rotary_of

NAMES = ("q_proj", "k_proj", "v_proj", "o_proj")


def llama(fields: Fields, layer: int) -> Recipe:
    """Llama."""
    use_bias = bool(fields.take("attention_bias", False))
    return _recipe(layer, heads(fields) | {"rotary": rotary_of(fields), "use_bias": use_bias, "use_out_bias": use_bias})


def mistral(fields: Fields, layer: int) -> Recipe:
    """Mistral: Llama, with a window in all layers or none."""
    size = fields.take("sliding_window")
    mask: Mask = Causal() if size is None else SlidingWindow(size)
    return _recipe(layer, heads(fields, kv_heads=8) | {"rotary": rotary_of(fields), "mask": mask})


def qwen2(fields: Fields, layer: int) -> Recipe:
    """Qwen2: Llama with biases of queries, keys and values, and a window in some layers."""
    own = {"rotary": rotary_of(fields), "mask": _qwen_mask(fields, layer), "use_bias": True}
    return _recipe(layer, heads(fields) | own)


def qwen3(fields: Fields, layer: int) -> Recipe:
    """Qwen3: Llama with normalized heads, and a window in some layers."""
    use_bias = bool(fields.take("attention_bias", False))
    own = {
        "rotary": rotary_of(fields),
        "mask": _qwen_mask(fields, layer),
        "normalize_heads": "rms",
        "norm_epsilon": float(fields.take("rms_norm_eps", 1e-6)),
        "use_bias": use_bias,
        "use_out_bias": use_bias,
    }
    return _recipe(layer, heads(fields, head_width=128) | own)


def heads(fields: Fields, kv_heads: int | None = None, head_width: int | None = None) -> dict[str, Any]:
    """Return the sizes of heads, which most families name alike, with their defaults."""
    width, H = fields.size("hidden_size"), fields.size("num_attention_heads")
    D = fields.size("head_dim", head_width or width // H)
    return {
        "num_heads": H,
        "num_kv_heads": fields.size("num_key_value_heads", kv_heads or H),
        "features": width,
        "head_width": D,
        "use_out_bias": False,
        "dropout_rate": float(fields.take("attention_dropout", 0.0)),
        "cache_length": fields.take("max_position_embeddings"),
    }


def _qwen_mask(fields: Fields, layer: int) -> Mask:
    size = fields.take("sliding_window", 4096) if fields.take("use_sliding_window", False) else None
    first = fields.take("max_window_layers", 28)
    types = fields.take("layer_types")
    if types is None:
        is_windowed = size is not None and layer >= first
        types = [*["full_attention"] * layer, "sliding_attention" if is_windowed else "full_attention"]
    return windowed(fields, types, layer, size)


def _recipe(layer: int, options: dict[str, Any]) -> Recipe:
    def params(tensors: Tensors) -> Params:
        tensors.discard("rotary_emb.inv_freq")  # old files store the speeds
        taken = linear_layers(tensors, options, NAMES)
        if "normalize_heads" in options:
            taken |= {
                f"{name}_norm": scale(tensors, f"{name[0]}_norm", options["head_width"]) for name in ("query", "key")
            }
        return taken

    return Recipe(f"layers.{layer}.self_attn.", "q_proj.weight", options, params)
