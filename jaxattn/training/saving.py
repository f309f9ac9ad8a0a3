"""A trained model on disk: parameters as safetensors, configuration as JSON, nothing that executes."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxattn.extras import require
from jaxattn.models.gpt import GPT, GPTConfig

PARAMETERS, CONFIGURATION = "model.safetensors", "config.json"


def prepare_directory(directory: str) -> Path:
    """Create the directory and check that it can be written, before a run rather than after it.

    Raises:
        OSError: the directory cannot be made or written.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    probe = path / ".writable"
    probe.write_bytes(b"")
    probe.unlink()
    return path


def save_model(directory: Path, config: GPTConfig, params: Any) -> None:
    """Write parameters and configuration.

    Raises:
        OSError: the disk is full, or the directory cannot be written.
        ImportError: safetensors is not installed.
    """
    arrays = {name: np.asarray(array) for name, array in flatten_dict(params, sep=".").items()}
    write_whole(directory / PARAMETERS, require("safetensors.numpy", extra="train").save(arrays))
    write_whole(directory / CONFIGURATION, json.dumps(dataclasses.asdict(config), indent=1).encode())


def load_model(directory: str | Path) -> tuple[GPT, Any]:
    """Read a model that `save_model` has written; return `(model, params)`.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is damaged, or a tensor is missing, unexpected or has another shape.
        ImportError: safetensors is not installed.
    """
    directory = Path(directory)
    try:
        model = GPT(GPTConfig(**json.loads((directory / CONFIGURATION).read_text())))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{directory / CONFIGURATION} is not the configuration of a saved model ({error})") from error
    try:
        arrays = require("safetensors.numpy", extra="train").load((directory / PARAMETERS).read_bytes())
    except require("safetensors", extra="train").SafetensorError as error:
        raise ValueError(f"{directory / PARAMETERS} is damaged or not a safetensors file ({error})") from error
    expected = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(1, jnp.int32))["params"]
    shapes = {name: leaf.shape for name, leaf in flatten_dict(expected, sep=".").items()}
    for name in shapes.keys() | arrays.keys():
        found = arrays[name].shape if name in arrays else "missing"
        if found != shapes.get(name):
            wanted = shapes.get(name, "not part of the model")
            raise ValueError(f"{directory / PARAMETERS}: tensor {name} is {found}, but config.json says {wanted}")
    return model, unflatten_dict({name: jnp.asarray(array) for name, array in arrays.items()}, sep=".")


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file as a whole: if writing fails, the old file stays.

    Raises:
        OSError: the disk is full, or the directory cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
