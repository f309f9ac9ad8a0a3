"""GPT-2: queries, keys and values from one matrix, stored as `(d_in, d_out)`."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxattn.masks import Causal
from jaxattn.models.convert.tensors import Params, Tensors
from jaxattn.models.convert.transformers.fields import Fields
from jaxattn.models.convert.transformers.recipe import Recipe


def gpt2(fields: Fields, layer: int, part: str | None) -> Recipe:
    """GPT-2, which may have cross-attention: then queries come from a matrix of their own."""
    fields.ignore(
        "n_layer n_ctx n_inner activation_function embd_pdrop resid_pdrop reorder_and_upcast_attn add_cross_attention "
        "summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout"
    )
    width, H = fields.size("n_embd", 768), fields.size("n_head", 12)
    scale = (width // H) ** -0.5 if fields.take("scale_attn_weights", True) else 1.0
    if fields.take("scale_attn_by_inverse_layer_idx", False):
        scale /= layer + 1
    if part == "cross":
        fields.check_cross()
    longest = fields.size("n_positions", 1024)
    options: dict[str, Any] = {
        "num_heads": H,
        "features": width,
        "use_bias": True,
        "scale": scale,
        "dropout_rate": float(fields.take("attn_pdrop", 0.1)),
        "cache_length": longest if part is None else None,
        "mask": Causal() if part is None else None,
    }

    def params(tensors: Tensors) -> Params:
        for buffer in ("bias", "masked_bias"):
            tensors.discard(buffer)  # old files store the causal mask
        joined: dict[str, tuple[str, ...]] = {"c_attn": ("query", "key", "value")}
        if part == "cross":
            joined = {"q_attn": ("query",), "c_attn": ("key", "value")}
        taken: Params = {}
        for source, names in joined.items():
            kernels = np.split(tensors.take(f"{source}.weight", (width, len(names) * width)), len(names), axis=1)
            biases = np.split(tensors.take(f"{source}.bias", (len(names) * width,)), len(names))
            for name, kernel, bias in zip(names, kernels, biases, strict=True):
                taken[name] = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
        out = tensors.take("c_proj.weight", (width, width)), tensors.take("c_proj.bias", (width,))
        return taken | {"out": {"kernel": jnp.asarray(out[0]), "bias": jnp.asarray(out[1])}}

    module = "attn" if part is None else "crossattention"
    return Recipe(f"h.{layer}.{module}.", "c_attn.weight", options, params)
