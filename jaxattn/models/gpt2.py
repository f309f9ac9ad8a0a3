"""GPT-2 as Hugging Face stores it, a directory with `config.json` and `model.safetensors`; nothing in it is run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxattn.extras import require
from jaxattn.models.convert import Params, Tensors
from jaxattn.models.gpt import GPT, GPTConfig

# What the architecture here computes; a checkpoint that says otherwise computes something else.
_FIXED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def load_gpt2(directory: str | Path) -> tuple[GPT, Params]:
    """Read a GPT-2 checkpoint in the form of Hugging Face's transformers.

    Args:
        directory: where `config.json` and `model.safetensors` lie.

    Returns:
        The model and its parameters, float32: `model.apply({"params": params}, tokens)` gives the logits.

    Raises:
        ImportError: safetensors is missing.
        OSError: a file is missing or cannot be read.
        ValueError: the configuration is that of another architecture, or the file is damaged, or a tensor is missing,
            left over, or of another shape; it is named.

    Example:
        >>> from jaxattn import load_gpt2
        >>> model, params = load_gpt2("gpt2")  # doctest: +SKIP

    References:
        Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
    """
    directory = Path(directory)
    config = _read_config(directory / "config.json")
    file = directory / "model.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: load_gpt2 takes the directory that holds it and config.json")
    safetensors = require("safetensors", extra="train")
    numpy_files = require("safetensors.numpy", extra="train")
    try:
        loaded = numpy_files.load_file(file)
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{file} is damaged or no safetensors file: {error}") from None
    try:
        return GPT(config), params_from_gpt2(loaded, config)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _read_config(file: Path) -> GPTConfig:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: load_gpt2 takes a directory with a GPT-2's config.json")
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        sizes = {name: given[name] for name in ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd")}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    except KeyError as error:
        raise ValueError(f"{file} does not name {error}, as a GPT-2's does") from None
    if given.get("model_type", "gpt2") != "gpt2":
        raise ValueError(f"{file} is that of a {given['model_type']}, and load_gpt2 reads GPT-2 alone")
    for name, allowed in _FIXED.items():
        if given.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{file} says {name}={given[name]!r}, and only {allowed[0]!r} is computed here")
    try:
        config = GPTConfig(*sizes.values())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if given.get("n_inner") not in (None, 4 * config.features):
        raise ValueError(f"{file} says n_inner={given['n_inner']}, and only 4 * n_embd is computed here")
    return config


def params_from_gpt2(loaded: Mapping[str, Any], config: GPTConfig) -> Params:
    """Turn the tensors of a GPT-2, by the names that Hugging Face gives them, into parameters of a `GPT`.

    Args:
        loaded: the arrays or tensors, with or without the prefix "transformer.".
        config: the sizes.

    Returns:
        Parameters, float32.

    Raises:
        ValueError: a tensor is missing, left over, or of another shape; it is named.

    Example:
        >>> from jaxattn import GPTConfig
        >>> from jaxattn.models.gpt2 import params_from_gpt2
        >>> params_from_gpt2({}, GPTConfig(257, 16, 1, 2, 8))
        Traceback (most recent call last):
        ...
        ValueError: the tensor wte.weight is missing; left are nothing
    """
    tensors = Tensors({name.removeprefix("transformer."): array for name, array in loaded.items()})
    width = config.features
    words = tensors.take("wte.weight", (config.vocab_size, width))
    # The head is tied to the embedding, and therefore usually left out.
    head = tensors.take("lm_head.weight", words.shape) if tensors.has("lm_head.weight") else words
    if not np.array_equal(head, words):
        raise ValueError("the tensor lm_head.weight differs from wte.weight, and here they are one")
    params: Params = {
        "embedding": {"embedding": words},
        "positions": tensors.take("wpe.weight", (config.context_length, width)),
        "norm": _norm(tensors, "ln_f", width),
    }
    for layer in range(config.num_layers):
        params[f"block_{layer}"] = _block(tensors, f"h.{layer}.", width)
    tensors.finish()
    return _floats(params)


def _block(tensors: Tensors, prefix: str, width: int) -> Params:
    for buffer in ("attn.bias", "attn.masked_bias"):
        # Old files store the causal mask.
        tensors.left.pop(prefix + buffer, None)
    # Hugging Face's layers here are (in, out), like kernels, with query, key and value side by side.
    stacked = _dense(tensors, f"{prefix}attn.c_attn", width, 3 * width)
    kernels, biases = np.split(stacked["kernel"], 3, axis=1), np.split(stacked["bias"], 3)
    attention: Params = {
        name: {"kernel": kernel, "bias": bias}
        for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True)
    }
    return {
        "attention_norm": _norm(tensors, f"{prefix}ln_1", width),
        "attention": attention | {"out": _dense(tensors, f"{prefix}attn.c_proj", width, width)},
        "feed_forward_norm": _norm(tensors, f"{prefix}ln_2", width),
        "expand": _dense(tensors, f"{prefix}mlp.c_fc", width, 4 * width),
        "contract": _dense(tensors, f"{prefix}mlp.c_proj", 4 * width, width),
    }


def _dense(tensors: Tensors, name: str, d_in: int, d_out: int) -> Params:
    return {"kernel": tensors.take(f"{name}.weight", (d_in, d_out)), "bias": tensors.take(f"{name}.bias", (d_out,))}


def _norm(tensors: Tensors, name: str, width: int) -> Params:
    return {"scale": tensors.take(f"{name}.weight", (width,)), "bias": tensors.take(f"{name}.bias", (width,))}


def _floats(params: Any) -> Any:
    if isinstance(params, dict):
        return {name: _floats(inner) for name, inner in params.items()}
    return jnp.asarray(params, jnp.float32)
