"""What a learner's exception says, and what to do about it."""

import inspect
import re
import textwrap
import traceback
from collections.abc import Callable
from typing import Any

from jaxattn.exercises.catalog import steps

IMPORTS = {
    "jax": "import jax",
    "jnp": "import jax.numpy as jnp",
    "np": "import numpy as np",
    "nn": "import flax.linen as nn",
    "math": "import math",
    "functools": "import functools",
    "jaxattn": "import jaxattn",
}
# What a message of JAX or NumPy means here.
ADVICE = {
    r"vmap was requested to map": "give None in in_axes to each argument that all examples share",
    r"vmap got inconsistent sizes": "each argument that is mapped needs one entry for each example",
    r"[Ii]ncompatible shapes for broadcasting.*\((\d+), \d+\), \(\1,\)": "keep the summed axis as a column: keepdims=True",
    r"contracting dimensions": "in a @ b, the last axis of a must be as long as the first axis of b",
    r"matmul: Input operand 1 has a mismatch": "in a @ b, the last axis of a must be as long as the first axis of b",
    r"arrays are immutable": "make the array in one go, with jnp.where or jnp.stack, or write x = x.at[i].set(y)",
}


def explain_error(error: BaseException, file: str) -> str:
    """Say what was raised, in which line of the learner's file, and what to do about it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    message = " ".join(str(error).split())
    where = f" in line {lines[-1]}" if lines else ""
    shown = textwrap.shorten(message.partition(". Instead of")[0], 200, placeholder=" …").rstrip(".")
    parts = [f"raises {type(error).__name__}{where}" + (f": {shown}" if shown else ""), _advice(error, message)]
    return ". ".join(filter(None, parts))


def shapes_of(function: Callable[..., Any], args: tuple) -> str:
    """Name the arrays that a function was called with, and their shapes."""
    names = list(inspect.signature(function).parameters)
    shapes = [f"{name} {arg.shape}" for name, arg in zip(names, args, strict=False) if getattr(arg, "shape", ())]
    return f"It was called with {', '.join(shapes)}" if shapes else ""


def _advice(error: BaseException, message: str) -> str:
    if isinstance(error, NameError) and error.name:
        if error.name in IMPORTS:
            return f"Write {IMPORTS[error.name]} at the top"
        known = [step.file for step in steps() if error.name in step.functions]
        return f"Each step's file stands alone: copy the function from {known[0]}" if known else ""
    found = [advice for pattern, advice in ADVICE.items() if re.search(pattern, message)]
    return f"{found[0][0].upper()}{found[0][1:]}" if found and isinstance(error, TypeError | ValueError) else ""
