"""Tensors in files of the safetensors library, one file or several with an index; reading them runs no code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxattn.extras import require
from jaxattn.files import read_json

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
# The names of types that NumPy cannot hold begin with these: float8 and smaller.
SMALL = ("F8_", "F6_", "F4")


def _all(name: str) -> bool:
    return True


def read_tensors(directory: Path, wanted: Callable[[str], bool] = _all) -> tuple[Path, dict[str, np.ndarray]]:
    """Read `model.safetensors`, or the files that `model.safetensors.index.json` names; return which, and the tensors.

    `wanted` says by its name whether a tensor is read; files without any are not opened.

    Raises:
        ImportError: safetensors is missing.
        OSError: a file is missing or cannot be read.
        ValueError: a file is damaged, or holds a type that is not supported.
    """
    file, index = directory / FILE, directory / INDEX
    if file.is_file():
        return file, _read(file, wanted)
    if not index.is_file():
        raise FileNotFoundError(f"{file} does not exist, nor does {INDEX}: name the directory that holds one of them")
    shards = {name: shard for name, shard in _read_index(index).items() if wanted(name)}
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted(set(shards.values())):
        if not (directory / shard).is_file():
            raise FileNotFoundError(f"{directory / shard} does not exist, but {INDEX} names it: download it too")
        tensors |= _read(directory / shard, wanted)
    for name, shard in shards.items():
        if name not in tensors:
            raise ValueError(f"{index} says that {shard} holds the tensor {name}, but it does not")
    return index, tensors


def _read_index(file: Path) -> dict[str, str]:
    """Return the file that holds each tensor."""
    try:
        shards = dict(read_json(file)["weight_map"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is damaged, or no index of safetensors files: {error!r}") from None
    for shard in shards.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(f"{file} names {shard!r}, but must name files of its own directory")
    return shards


def _read(file: Path, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    safetensors: Any = require("safetensors", extra="train")
    try:
        with safetensors.safe_open(file, framework="np") as opened:
            names = [name for name in opened.keys() if wanted(name)]  # noqa: SIM118 (no dictionary)
            for name in names:
                kind = opened.get_slice(name).get_dtype()
                if kind.startswith(SMALL):
                    raise ValueError(
                        f"the tensor {name} has type {kind}, but must be float64, float32, float16 or bfloat16: "
                        "quantized numbers need their scales, so convert the file first"
                    )
            return {name: opened.get_tensor(name) for name in names}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is damaged or no safetensors file: {error}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
