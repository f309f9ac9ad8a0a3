"""Llama, Mistral, Qwen2 and Qwen3 in Hugging Face's format: `config.json` and safetensors; reading runs no code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.files import read_json
from jaxattn.masks import SlidingWindow
from jaxattn.models.convert.files import read_tensors
from jaxattn.models.convert.tensors import Params, Tensors
from jaxattn.models.convert.transformers import recipe_of
from jaxattn.models.convert.transformers.fields import Fields
from jaxattn.models.convert.transformers.recipe import Recipe, dense, scale
from jaxattn.models.llama import Llama, LlamaConfig

KINDS = ("llama", "mistral", "qwen2", "qwen3")


def load_llama(directory: str | Path, *, context_length: int | None = None) -> tuple[Llama, Params]:
    """Read a Llama, Mistral, Qwen2 or Qwen3, as `save_pretrained` of transformers writes it.

    Args:
        directory: holds `config.json` and `model.safetensors`, or several files and `model.safetensors.index.json`.
        context_length: the longest sequence, for which `generate` keeps keys and values; None is the configuration's
            `max_position_embeddings`, which may need much memory.

    Returns:
        The model and its parameters, float32: `model.apply({"params": params}, tokens)` gives the logits, and
        `generate(model, params, prompt, 100)` continues a prompt.

    Raises:
        ImportError: safetensors is missing.
        OSError: a file is missing or cannot be read.
        ValueError: the configuration describes another architecture, a file is damaged, or a tensor is missing, left
            over, or of the wrong shape or type.

    Example:
        >>> from jaxattn import load_llama
        >>> model, params = load_llama("Qwen3-0.6B", context_length=4096)  # doctest: +SKIP
    """
    directory = Path(directory)
    file = directory / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: load_llama takes a directory that save_pretrained wrote")
    try:
        fields = dict(read_json(file))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    try:
        config, recipes = read_config(fields, context_length)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    file, tensors = read_tensors(directory)
    try:
        return Llama(config), params_from_llama(tensors, config, recipes)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def read_config(fields: Mapping[str, Any], context_length: int | None = None) -> tuple[LlamaConfig, list[Recipe]]:
    """Return the sizes that a configuration describes, and how each layer's attention is made.

    Raises:
        ValueError: the configuration describes what `Llama` does not compute.
    """
    if fields.get("model_type") not in KINDS:
        raise ValueError(f"config has model_type={fields.get('model_type')!r}, but load_llama reads {', '.join(KINDS)}")
    # recipe_of checks the fields of attention; here are those of the rest.
    whole = Fields(f"the configuration of a {fields['model_type']}", fields)
    whole.require("hidden_act", "silu")
    whole.require("final_logit_softcapping")
    recipes = [recipe_of(fields, layer) for layer in range(whole.size("num_hidden_layers"))]
    attention, longest = recipes[0].fields, whole.size("max_position_embeddings", 2048)
    if context_length is not None and not 1 <= context_length <= longest:
        raise ValueError(
            f"context_length={context_length} must be from 1 to max_position_embeddings={longest}: write "
            f"context_length={longest}"
        )
    masks = [recipe.fields.get("mask") for recipe in recipes]
    config = LlamaConfig(
        vocab_size=whole.size("vocab_size"),
        context_length=context_length or longest,
        num_layers=len(recipes),
        features=attention["features"],
        hidden_features=whole.size("intermediate_size"),
        num_heads=attention["num_heads"],
        num_kv_heads=attention["num_kv_heads"],
        head_width=attention["head_width"],
        rotary=attention["rotary"],
        windows=tuple(mask.size if isinstance(mask, SlidingWindow) else None for mask in masks),
        use_bias=attention.get("use_bias", False),
        use_out_bias=attention["use_out_bias"],
        use_feed_forward_bias=bool(whole.take("mlp_bias", False)),
        normalize_heads="normalize_heads" in attention,
        norm_epsilon=float(whole.take("rms_norm_eps", 1e-6)),
        is_tied=bool(whole.take("tie_word_embeddings", False)),
    )
    return config, recipes


def params_from_llama(tensors: Mapping[str, Any], config: LlamaConfig, recipes: list[Recipe]) -> Params:
    """Convert the tensors of a model, with or without the prefix "model.", into parameters of a `Llama`, float32.

    Raises:
        ValueError: a tensor is missing, left over, or of the wrong shape or type.
    """
    left = Tensors({name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    shape = config.vocab_size, config.features
    embedding = left.take("embed_tokens.weight", shape)
    params: Params = {"embedding": {"embedding": embedding}, "norm": scale(left, "norm", config.features)}
    if not config.is_tied:
        params["output"] = left.take("lm_head.weight", shape)
    elif "lm_head.weight" in left and not np.array_equal(left.take("lm_head.weight", shape), embedding):
        raise ValueError("the tensor lm_head.weight differs from embed_tokens.weight, but tie_word_embeddings is true")
    for layer, recipe in enumerate(recipes):
        params[f"block_{layer}"] = _block(left, layer, recipe, config)
    left.finish()
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), params)


def _block(left: Tensors, layer: int, recipe: Recipe, config: LlamaConfig) -> Params:
    attention = left.part(recipe.path)
    params: Params = {"attention": recipe.params(attention)}
    attention.finish()
    prefix, width, hidden = f"layers.{layer}.", config.features, config.hidden_features
    norms = {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}
    params |= {name: scale(left, prefix + theirs, width) for name, theirs in norms.items()}
    for name, d_in, d_out in (("gate", width, hidden), ("up", width, hidden), ("down", hidden, width)):
        params[name] = dense(left, f"{prefix}mlp.{name}_proj", d_in, d_out, config.use_feed_forward_bias)
    return params
