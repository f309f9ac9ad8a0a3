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
    r"vmap was requested to map": "give None in in_axes to each argument that all examples share, and split a key into "
    "one for each example",
    r"vmap got inconsistent sizes": "each argument that is mapped needs one entry for each example",
    r"shapes=\[\((\d+), \1\), \(\1, (\d+), \2\)": "the scores are of heads with heads, for each token: swap (T, H, D) to "
    "(H, T, D) first",
    r"[Ii]ncompatible shapes for broadcasting.*\((\d+), \d+\), \(\1,\)": "keep the summed axis as a column: keepdims=True",
    r"contracting dimensions": "in a @ b, the last axis of a must be as long as the first axis of b",
    r"matmul: Input operand 1 has a mismatch": "in a @ b, the last axis of a must be as long as the first axis of b",
    r"Incompatible types for matmul": "in a @ b, all but the last two axes must agree: .T reverses all axes, "
    "jnp.swapaxes(x, -1, -2) swaps the last two",
    r"arrays are immutable": "make the array in one go, with jnp.where or jnp.stack, or write x = x.at[i].set(y)",
    r"different numbers of dimensions|no attribute 'unsqueeze'": "write v[None], a row (1, d) of the vector (d,)",
    r"Need at least one array|scalar arrays can be converted|multiple values for argument 'axis'": "give "
    "jnp.concatenate its arrays in one list, [a, b]",
    r"for \+: 'ArrayImpl' and 'list'|no attribute '(append|cat)'": "join arrays with jnp.concatenate([a, b], axis=...)",
    r"of integer type|'float' object cannot be interpreted": "divide with //, which gives a whole number",
    r"accepts a single key": "give each call one of the keys",
    r"dtypes.*key<": "a key is no number: look at the order of the arguments; jax.random.split(key, n) makes further keys",
    r"PRNGKeyArray' object has no": "a key is an argument: jax.random.split(key, n), jax.random.bernoulli(key, ...)",
    # What readers of the book know from PyTorch.
    r"object is not callable": "leave the () out: x.T and x.shape are no functions; write x.shape[0]",
    r"argument 'dim'": "JAX says axis",
    r"no attribute 'softmax'": "it is jax.nn.softmax(x, axis=-1)",
    r"_view\(\)": "write x.reshape(...)",
    r"no attribute 'permute'|transpose permutation": "name all axes, as in x.transpose(1, 0, 2), "
    "or swap two with jnp.swapaxes(x, 0, 1)",
    r"no attribute 'masked_fill": "write jnp.where(mask, scores, value)",
    r"no attribute 'contiguous'": "leave it out",
}


def explain_error(error: BaseException, file: str) -> str:
    """Say what was raised, in which line of the learner's file, and what to do about it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    message = " ".join(str(error).split())
    where = f" in line {lines[-1]}" if lines else ""
    where += f", called in line {lines[-2]}" if len({*lines[-2:]}) == 2 else ""
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
        if error.name in ("torch", "F"):
            return "Write it with jnp and jax.nn in place of PyTorch"
        known = [step.file for step in steps() if error.name in step.functions]
        return f"Each step's file stands alone: copy the function from {known[0]}" if known else ""
    found = [advice for pattern, advice in ADVICE.items() if re.search(pattern, message)]
    return f"{found[0][0].upper()}{found[0][1:]}" if found else ""
