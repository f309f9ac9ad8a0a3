"""T5: no scale, no biases of the projections, and a relative bias that all layers of a stack share."""

from typing import Any

import jax.numpy as jnp

from jaxattn.layer import RelativeBias
from jaxattn.masks import Causal
from jaxattn.models.convert.tensors import Params, Tensors
from jaxattn.models.convert.transformers.fields import Fields
from jaxattn.models.convert.transformers.recipe import Recipe, linear_layers

TABLE = "relative_attention_bias.weight"


def t5(fields: Fields, layer: int, part: str) -> Recipe:
    """T5: attention of the encoder, of the decoder, or from the decoder to the encoder."""
    fields.ignore(
        "num_layers num_decoder_layers d_ff feed_forward_proj dense_act_fn is_gated_act classifier_dropout is_decoder "
        "scale_decoder_outputs output_past n_positions"
    )
    options: dict[str, Any] = {
        "num_heads": fields.size("num_heads", 8),
        "features": fields.size("d_model", 512),
        "head_width": fields.size("d_kv", 64),
        "use_out_bias": False,
        "scale": 1.0,
        "mask": Causal() if part == "decoder" else None,
        "dropout_rate": float(fields.take("dropout_rate", 0.1)),
        "cache_length": fields.size("n_positions", 512) if part == "decoder" else None,
    }
    buckets = fields.size("relative_attention_num_buckets", 32)
    farthest = fields.size("relative_attention_max_distance", 128)
    if part != "cross":
        options["position_bias"] = RelativeBias(buckets, farthest, bidirectional=part == "encoder")

    def params(tensors: Tensors) -> Params:
        taken = linear_layers(tensors, options, ("q", "k", "v", "o"))
        if part == "cross":
            tensors.discard(TABLE)  # old files store one that is never used
            return taken
        return taken | {"relative_bias": jnp.asarray(tensors.take(TABLE, (buckets, options["num_heads"])))}

    stack, module = ("encoder" if part == "encoder" else "decoder"), "SelfAttention."
    path = f"{stack}.block.{layer}.layer.1.EncDecAttention."
    if part != "cross":
        path = f"{stack}.block.{layer}.layer.0.{module}"
    # Only the first layer stores the table.
    shared = {} if part == "cross" else {TABLE: f"{stack}.block.0.layer.0.{module}{TABLE}"}
    return Recipe(path, "q.weight", options, params, shared)
