"""DeepSeek-V2 and V3: latent attention."""

from typing import Any

import jax.numpy as jnp

from jaxattn.models.convert.tensors import Params, Tensors
from jaxattn.models.convert.transformers.fields import Fields
from jaxattn.models.convert.transformers.recipe import Recipe, dense, scale
from jaxattn.models.convert.transformers.rope import magnitude, rope_fields, rotary_of

EXPERTS = """
    n_group n_routed_experts n_shared_experts num_experts num_local_experts num_experts_per_tok norm_topk_prob
    routed_scaling_factor topk_group topk_method first_k_dense_replace moe_intermediate_size moe_layer_freq ep_size
    scoring_func aux_loss_alpha seq_aux num_nextn_predict_layers num_mtp_layers output_router_logits auto_map
"""


def deepseek_v2(fields: Fields, layer: int) -> Recipe:
    """DeepSeek-V2."""
    return _recipe(fields, layer, interleaved=True)


def deepseek_v3(fields: Fields, layer: int) -> Recipe:
    """DeepSeek-V3."""
    return _recipe(fields, layer, interleaved=bool(fields.take("rope_interleave", True)))


def _recipe(fields: Fields, layer: int, interleaved: bool) -> Recipe:
    from jaxattn import LatentAttention

    fields.ignore(EXPERTS)
    H, nope, rope = (fields.size(name) for name in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim"))
    fields.require("num_key_value_heads", H)
    fields.require("head_dim", rope)
    fields.require("qk_head_dim", nope + rope)
    options: dict[str, Any] = {
        "num_heads": H,
        "features": fields.size("hidden_size"),
        "latent_width": fields.size("kv_lora_rank"),
        "head_width": nope,
        "rotary_width": rope,
        "value_width": fields.size("v_head_dim"),
        "query_width": fields.take("q_lora_rank"),
        "use_bias": bool(fields.take("attention_bias", False)),
        "rotary": rotary_of(fields, interleaved=interleaved),
        "scale": (nope + rope) ** -0.5 * _magnitude(fields) ** 2,
        "dropout_rate": float(fields.take("attention_dropout", 0.0)),
        "cache_length": fields.take("max_position_embeddings"),
    }
    return Recipe(
        f"layers.{layer}.self_attn.",
        "kv_a_proj_with_mqa.weight",
        options,
        lambda tensors: _params(tensors, options),
        module=LatentAttention,
    )


def _magnitude(fields: Fields) -> float:
    """Return the factor whose square multiplies the scale, for all numbers of a head."""
    rope, _ = rope_fields(fields, 0.0, None)
    all_dim = rope.take("mscale_all_dim")
    if rope.take("rope_type", rope.take("type", "default")) == "default" or not all_dim:
        return 1.0
    factor = rope.take("factor")
    if not isinstance(factor, int | float):
        raise ValueError(f"{rope.owner} has mscale_all_dim={all_dim!r} and factor={factor!r}, which must be a number")
    return magnitude(float(factor), float(all_dim))


def _params(tensors: Tensors, options: dict[str, Any]) -> Params:
    H, width, latent = (options[name] for name in ("num_heads", "features", "latent_width"))
    nope, rope, value, query = (options[f"{name}_width"] for name in ("head", "rotary", "value", "query"))
    use_bias, queries = options["use_bias"], H * (nope + rope)
    if query is None:
        taken: Params = {"query": dense(tensors, "q_proj", width, queries)}
    else:
        taken = {
            "query_down": dense(tensors, "q_a_proj", width, query, use_bias),
            "query_norm": scale(tensors, "q_a_layernorm", query),
            "query_up": dense(tensors, "q_b_proj", query, queries),
        }
    joined = tensors.take("kv_b_proj.weight", (H * (nope + value), latent)).reshape(H, nope + value, latent)
    # (H, width, latent) -> (latent, H * width)
    parts = {"key_up": joined[:, :nope], "value_up": joined[:, nope:]}
    up = {name: {"kernel": jnp.asarray(part.reshape(-1, latent).T)} for name, part in parts.items()}
    return (
        taken
        | up
        | {
            "kv_down": dense(tensors, "kv_a_proj_with_mqa", width, latent + rope, use_bias),
            "kv_norm": scale(tensors, "kv_a_layernorm", latent),
            "out": dense(tensors, "o_proj", H * value, width, use_bias),
        }
    )
