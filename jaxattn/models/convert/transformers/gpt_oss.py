"""gpt-oss: learned sinks, biases, YaRN, and a window in every second layer."""

import jax.numpy as jnp

from jaxattn.models.convert.tensors import Params, Tensors
from jaxattn.models.convert.transformers.fields import Fields
from jaxattn.models.convert.transformers.llama import NAMES, heads
from jaxattn.models.convert.transformers.recipe import Recipe, linear_layers, windowed
from jaxattn.models.convert.transformers.rope import rotary_of


def gpt_oss(fields: Fields, layer: int) -> Recipe:
    """gpt-oss."""
    fields.ignore(
        "num_local_experts num_experts num_experts_per_tok experts_per_token output_router_logits router_aux_loss_coef "
        "swiglu_alpha swiglu_limit initial_context_length quantization_config"
    )
    types = fields.take("layer_types")
    if types is None:
        types = ["full_attention" if number % 2 else "sliding_attention" for number in range(layer + 1)]
    use_bias = bool(fields.take("attention_bias", True))
    options = heads(fields, 8, 64) | {
        "rotary": rotary_of(fields, 150_000.0),
        "mask": windowed(fields, types, layer, fields.take("sliding_window", 128)),
        "use_sinks": True,
        "use_bias": use_bias,
        "use_out_bias": use_bias,
    }

    def params(tensors: Tensors) -> Params:
        sinks = jnp.asarray(tensors.take("sinks", (options["num_heads"],)))
        return linear_layers(tensors, options, NAMES) | {"sinks": sinks}

    return Recipe(f"layers.{layer}.self_attn.", "q_proj.weight", options, params)
