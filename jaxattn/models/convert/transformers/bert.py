"""BERT: attention without a mask, with biases; its output projection is in a module of its own."""

from typing import Any

from jaxattn.masks import Causal
from jaxattn.models.convert.tensors import Params, Tensors
from jaxattn.models.convert.transformers.fields import Fields
from jaxattn.models.convert.transformers.recipe import Recipe, linear_layers

NAMES = ("self.query", "self.key", "self.value", "output.dense")


def bert(fields: Fields, layer: int, part: str | None) -> Recipe:
    """BERT, whose decoders are causal, and may have cross-attention."""
    fields.ignore(
        "hidden_dropout_prob type_vocab_size classifier_dropout add_cross_attention directionality "
        "gradient_checkpointing pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers "
        "pooler_size_per_head pooler_type"
    )
    fields.require("position_embedding_type", "absolute")
    width, H = fields.size("hidden_size", 768), fields.size("num_attention_heads", 12)
    if width % H:
        raise ValueError(f"{fields.owner} has hidden_size={width}, which its {H} heads do not divide")
    is_causal = bool(fields.take("is_decoder", False)) and part is None
    if part == "cross":
        fields.check_cross()
    options: dict[str, Any] = {
        "num_heads": H,
        "features": width,
        "head_width": width // H,
        "use_bias": True,
        "mask": Causal() if is_causal else None,
        "dropout_rate": float(fields.take("attention_probs_dropout_prob", 0.1)),
        "cache_length": fields.take("max_position_embeddings") if is_causal else None,
    }

    def params(tensors: Tensors) -> Params:
        for name in ("output.LayerNorm.weight", "output.LayerNorm.bias"):
            tensors.discard(name)  # it follows the residual, outside attention
        return linear_layers(tensors, options, NAMES)

    module = "crossattention" if part == "cross" else "attention"
    return Recipe(f"encoder.layer.{layer}.{module}.", "self.query.weight", options, params)
