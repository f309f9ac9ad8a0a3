"""GPT-2: queries, keys and values from one matrix, stored as `(d_in, d_out)`."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxattn.models.convert.tensors import PROJECTIONS, Params, Tensors
from jaxattn.models.convert.transformers.fields import Fields
from jaxattn.models.convert.transformers.recipe import Recipe


def gpt2(fields: Fields, layer: int) -> Recipe:
    """GPT-2."""
    fields.ignore(
        "n_layer n_ctx n_inner activation_function embd_pdrop resid_pdrop reorder_and_upcast_attn add_cross_attention "
        "summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout"
    )
    width, H = fields.size("n_embd", 768), fields.size("n_head", 12)
    scale = (width // H) ** -0.5 if fields.take("scale_attn_weights", True) else 1.0
    if fields.take("scale_attn_by_inverse_layer_idx", False):
        scale /= layer + 1
    options: dict[str, Any] = {
        "num_heads": H,
        "features": width,
        "use_bias": True,
        "scale": scale,
        "dropout_rate": float(fields.take("attn_pdrop", 0.1)),
        "cache_length": fields.size("n_positions", 1024),
    }

    def params(tensors: Tensors) -> Params:
        for buffer in ("bias", "masked_bias"):
            tensors.discard(buffer)  # old files store the causal mask
        kernels = np.split(tensors.take("c_attn.weight", (width, 3 * width)), 3, axis=1)
        biases = np.split(tensors.take("c_attn.bias", (3 * width,)), 3)
        taken: Params = {
            name: {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
            for name, kernel, bias in zip(PROJECTIONS, kernels, biases, strict=True)
        }
        out = tensors.take("c_proj.weight", (width, width)), tensors.take("c_proj.bias", (width,))
        return taken | {"out": {"kernel": jnp.asarray(out[0]), "bias": jnp.asarray(out[1])}}

    return Recipe(f"h.{layer}.attn.", "c_attn.weight", options, params)
