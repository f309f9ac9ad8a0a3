"""What the reports of tasks share: the head that stands out, and the file."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxattn.files import write_whole


def largest(measured: np.ndarray) -> tuple[int, int]:
    """Return the layer and head with the largest number, of `(layers, heads)`."""
    layer, head = np.unravel_index(measured.argmax(), measured.shape)
    return int(layer), int(head)


def write_report(file: Path, report: Any) -> None:
    """Save a report, a named tuple, as JSON.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    write_whole(file, json.dumps(report._asdict(), indent=1, default=np.ndarray.tolist).encode())
