"""Small files of tokens, for tests."""

import numpy as np

from jaxattn.training.text import Stretch, Text


def write(path, tokens, dtype="uint8"):
    path.write_bytes(np.array(list(tokens), dtype).tobytes())
    return path


def whole_text(*paths, dtype="uint8", eos_token=None):
    return Text(
        tuple(Stretch(path, dtype, 0, path.stat().st_size // np.dtype(dtype).itemsize) for path in paths), eos_token
    )
