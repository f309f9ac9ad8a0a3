"""GPT-2 in Hugging Face's format, a directory with `config.json` and safetensors files; reading it runs no code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.files import read_json
from jaxattn.models.convert.files import read_tensors
from jaxattn.models.convert.tensors import PROJECTIONS, Params, Tensors
from jaxattn.models.gpt import GPT, GPTConfig

# Fields of the configuration, and the values for which `GPT` computes the same.
_SUPPORTED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
    "is_causal": (True,),
}


def load_gpt2(directory: str | Path) -> tuple[GPT, Params]:
    """Read a GPT-2 checkpoint in the format of Hugging Face's transformers.

    Args:
        directory: holds `config.json` and `model.safetensors`, or several files and `model.safetensors.index.json`.

    Returns:
        The model and its parameters, float32: `model.apply({"params": params}, tokens)` gives the logits.

    Raises:
        ImportError: safetensors is missing.
        OSError: a file is missing or cannot be read.
        ValueError: the configuration describes another architecture, a file is damaged, or a tensor is missing, left
            over, or of the wrong shape or type.

    Example:
        >>> from jaxattn import load_gpt2
        >>> model, params = load_gpt2("gpt2")  # doctest: +SKIP

    References:
        Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
    """
    directory = Path(directory)
    config = _read_config(directory / "config.json")
    file, tensors = read_tensors(directory)
    try:
        return GPT(config), params_from_gpt2(tensors, config)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _read_config(file: Path) -> GPTConfig:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: load_gpt2 takes a directory with a GPT-2's config.json")
    try:
        fields = read_json(file)
        sizes = {name: fields[name] for name in ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd")}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    except KeyError as error:
        raise ValueError(f"{file} has no field {error}, which a GPT-2's configuration has") from None
    if fields.get("model_type", "gpt2") != "gpt2":
        raise ValueError(f"{file} describes a {fields['model_type']}, but load_gpt2 reads only GPT-2")
    for name, supported in _SUPPORTED.items():
        if fields.get(name, supported[0]) not in supported:
            raise ValueError(f"{file} has {name}={fields[name]!r}, but only {supported[0]!r} is supported")
    try:
        config = GPTConfig(*sizes.values())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if fields.get("n_inner") not in (None, 4 * config.features):
        raise ValueError(f"{file} has n_inner={fields['n_inner']}, but only 4 * n_embd is supported")
    return config


def params_from_gpt2(tensors: Mapping[str, Any], config: GPTConfig) -> Params:
    """Convert the tensors of a GPT-2, with Hugging Face's names, into parameters of a `GPT`.

    Args:
        tensors: torch tensors or NumPy arrays, with or without the prefix "transformer.".
        config: the sizes.

    Returns:
        Parameters, float32.

    Raises:
        ValueError: a tensor is missing, left over, or of the wrong shape or type.

    Example:
        >>> from jaxattn import GPTConfig
        >>> from jaxattn.models.gpt2 import params_from_gpt2
        >>> params_from_gpt2({}, GPTConfig(257, 16, 1, 2, 8))
        Traceback (most recent call last):
        ...
        ValueError: the tensor wte.weight is missing; left are nothing
    """
    left = Tensors({name.removeprefix("transformer."): tensor for name, tensor in tensors.items()})
    width = config.features
    embedding = left.take("wte.weight", (config.vocab_size, width))
    # The output layer is tied to the embedding, and therefore usually not stored.
    output = left.take("lm_head.weight", embedding.shape) if "lm_head.weight" in left else embedding
    if not np.array_equal(output, embedding):
        raise ValueError("the tensor lm_head.weight differs from wte.weight, but GPT ties them")
    params: Params = {
        "embedding": {"embedding": embedding},
        "positions": left.take("wpe.weight", (config.context_length, width)),
        "norm": _norm(left, "ln_f", width),
    }
    for layer in range(config.num_layers):
        params[f"block_{layer}"] = _block(left, f"h.{layer}.", width)
    left.finish()
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), params)


def _block(tensors: Tensors, prefix: str, width: int) -> Params:
    for buffer in ("attn.bias", "attn.masked_bias"):
        tensors.discard(prefix + buffer)  # old files store the causal mask
    # These layers are stored (d_in, d_out), as kernels are, with query, key and value side by side.
    joined = _dense(tensors, f"{prefix}attn.c_attn", width, 3 * width)
    kernels, biases = np.split(joined["kernel"], 3, axis=1), np.split(joined["bias"], 3)
    attention: Params = {
        name: {"kernel": kernel, "bias": bias} for name, kernel, bias in zip(PROJECTIONS, kernels, biases, strict=True)
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
