"""A trained model on disk: parameters as safetensors, configuration as JSON, nothing that executes."""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxattn.cli import typed
from jaxattn.extras import require
from jaxattn.files import check_input, read_json, write_whole
from jaxattn.models.gpt import GPT, GPTConfig
from jaxattn.training.tokenizer import FILE as TOKENIZER
from jaxattn.training.tokenizer import Tokenizer, open_tokenizer

PARAMETERS, CONFIGURATION = "model.safetensors", "config.json"


def prepare_directory(directory: str | Path, option: str = "--out") -> Path:
    """Create the directory and check that it can be written, before a run rather than after it.

    Raises:
        OSError: the directory cannot be made or written.
    """
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{option} {path} is not a directory: name another one")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise type(error)(f"{option} {path}: {error.strerror}; name a directory that can be written") from None
    return path


def save_model(directory: Path, config: GPTConfig, params: Any, step: int | None = None) -> None:
    """Write parameters and configuration, which also holds the step and a hash of the tokenizer in the directory.

    Raises:
        OSError: the disk is full, or the directory cannot be written.
        ImportError: safetensors is not installed.
    """
    arrays = {name: np.asarray(array) for name, array in flatten_dict(params, sep=".").items()}
    write_whole(directory / PARAMETERS, require("safetensors.numpy", extra="train").save(arrays))
    content = dataclasses.asdict(config) | {"tokenizer": tokenizer_hash(directory), "step": step}
    write_whole(directory / CONFIGURATION, json.dumps(content, indent=1).encode())


def load_run(directory: str | Path) -> tuple[GPT, Any, Tokenizer]:
    """Read a model that `save_model` has written and the tokenizer beside it; return `(model, params, tokenizer)`.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is damaged, or the tokenizer is missing or belongs to another model.
        ImportError: safetensors is not installed, or tokenizers, which the run needs.
    """
    directory = Path(directory)
    model, params = load_model(directory)
    check_tokenizer(directory)
    tokenizer = open_tokenizer(directory)
    if tokenizer.vocab_size != model.config.vocab_size:
        found = TOKENIZER if (directory / TOKENIZER).exists() else f"bytes, for lack of {TOKENIZER},"
        raise ValueError(
            f"{directory} has a model of {model.config.vocab_size} tokens, but {found} has {tokenizer.vocab_size}: put "
            f"the {TOKENIZER} of this run there"
        )
    return model, params, tokenizer


def load_model(directory: str | Path) -> tuple[GPT, Any]:
    """Read a model that `save_model` has written; return `(model, params)`.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is damaged, or a tensor is missing, unexpected, or has another shape or type.
        ImportError: safetensors is not installed.
    """
    directory = Path(directory)
    for name in (CONFIGURATION, PARAMETERS):
        if not (directory / name).exists():
            raise FileNotFoundError(
                f"{directory} holds no trained model, as there is no {name} in it: name the directory of a run that "
                f"{typed('train')} --out DIR has ended"
            )
        check_input("the file", directory / name)
    try:
        content = read_json(directory / CONFIGURATION)
        config = GPTConfig(**{name: value for name, value in content.items() if name not in ("tokenizer", "step")})
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{directory / CONFIGURATION} is not the configuration of a saved model ({error})") from error
    try:
        arrays = require("safetensors.numpy", extra="train").load((directory / PARAMETERS).read_bytes())
    except (require("safetensors", extra="train").SafetensorError, KeyError) as error:
        raise ValueError(f"{directory / PARAMETERS} is damaged or not a safetensors file ({error})") from error
    try:
        _check_arrays(config, arrays)
    except ValueError as error:
        raise ValueError(f"{directory / PARAMETERS}: {error}") from None
    params = unflatten_dict({name: jnp.asarray(array) for name, array in arrays.items()}, sep=".")
    check_numbers(directory / PARAMETERS, params)
    return GPT(config), params


def _check_arrays(config: GPTConfig, arrays: dict[str, np.ndarray]) -> None:
    """Check that the arrays are the parameters of a GPT of these sizes."""
    # First the sizes that a damaged configuration could make too large to describe.
    if not config.rotary:
        _check_shapes(arrays, {"positions": (config.context_length, config.features)})
    _check_shapes(arrays, {"embedding.embedding": (config.vocab_size, config.features)})
    layers = len({name.partition(".")[0] for name in arrays if name.startswith("block_")})
    if config.num_layers > layers:
        raise ValueError(f"tensor block_{layers} is missing, but config.json says {config.num_layers} layers")
    init = GPT(config).init
    expected = jax.eval_shape(init, jax.random.key(0), jnp.zeros(1, jnp.int32))["params"]
    shapes = {name: leaf.shape for name, leaf in flatten_dict(expected, sep=".").items()}
    unexpected = dict.fromkeys(arrays.keys() - shapes.keys(), "not part of the model")
    _check_shapes(arrays, shapes | unexpected)


def _check_shapes(arrays: dict[str, np.ndarray], wanted: Mapping[str, tuple[int, ...] | str]) -> None:
    for name, shape in wanted.items():
        found = arrays[name].shape if name in arrays else "missing"
        if found != shape:
            raise ValueError(f"tensor {name} is {found}, but config.json says {shape}")
        if arrays[name].dtype != np.float32:
            raise ValueError(f"tensor {name} is {arrays[name].dtype}, but must be float32")


def check_numbers(file: Path, params: Any) -> None:
    """Check that no parameter is NaN or infinite.

    Raises:
        ValueError: one is; the model could predict nothing.
    """
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(np.asarray(array)).all():
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(f"{file}: tensor {name} holds NaN or infinity, so the model can predict nothing")


def tokenizer_hash(directory: Path) -> str | None:
    """Return what identifies the tokenizer in a run's directory, None for bytes."""
    file = directory / TOKENIZER
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None


def saved_step(directory: Path) -> int | None:
    """Return the step after which the model in a directory was saved; None if none is known."""
    try:
        content = read_json(directory / CONFIGURATION)
        return content["step"] if (directory / PARAMETERS).exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_tokenizer(directory: Path) -> None:
    """Check that the tokenizer in a run's directory is the one that its model was trained with.

    Raises:
        ValueError: it is missing, or another one.
    """
    file = directory / CONFIGURATION
    content = read_json(file) if file.exists() else {}
    found = tokenizer_hash(directory)
    if "tokenizer" not in content or content["tokenizer"] == found:  # version 0.1.0 saved no hash
        return
    if content["tokenizer"] is None:
        raise ValueError(f"the model in {directory} was trained on bytes, but there is a {TOKENIZER}: remove that")
    problem = "is missing" if found is None else "is another one"
    raise ValueError(f"{directory / TOKENIZER}, with which the model was trained, {problem}: put that back")
