"""What is checked in the last steps, the book's exercises: parameters and sizes of the library's modules."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxattn.exercises.checking import Exercise, Function, WrongAnswerError
from jaxattn.exercises.numbers import attend, draw
from jaxattn.stages import MultiHeadAttention, MultiHeadAttentionWrapper, SelfAttention


def _computes_the_same(function: Function) -> str | None:
    """Our module with the moved weights gives what the linear layers give."""
    x, *matrices = draw(10, (5, 3), *[(2, 3)] * 3)
    linear = dict(zip(("query", "key", "value"), matrices, strict=True))
    try:
        output = SelfAttention(2).apply({"params": function(linear)}, x)
    except Exception as error:
        reason = str(error).splitlines()[0].partition(" (http")[0]
        raise WrongAnswerError(f"makes parameters that SelfAttention cannot use: {reason}") from error
    query, key, value = (x @ matrix.T for matrix in matrices)
    right = np.allclose(np.asarray(output), attend(query, key, value, scale=2**-0.5), atol=1e-4)
    return None if right else "gives a module with another output than the linear layers have"


def _dictionaries(tree: Any) -> Any:
    """Any mapping will do, such as Flax's FrozenDict."""
    return {name: _dictionaries(each) for name, each in tree.items()} if isinstance(tree, Mapping) else tree


TRANSFER = Exercise(
    name="transfer",
    cases=[(dict(zip(("query", "key", "value"), draw(11, *[(2, 3)] * 3), strict=True)),)],
    reference=lambda linear: {name: {"kernel": matrix.T} for name, matrix in linear.items()},
    mistakes={
        "is not transposed: a linear layer's matrix is (out, in), a kernel (in, out)": lambda linear: {
            name: {"kernel": matrix} for name, matrix in linear.items()
        },
        "lacks the level of the kernel: {name: {'kernel': matrix}}": lambda linear: {
            name: matrix.T for name, matrix in linear.items()
        },
        "lacks the level of the kernel, and is not transposed": lambda linear: linear,
        "calls the matrices weight, as PyTorch does: their name is kernel": lambda linear: {
            name: {"weight": matrix.T} for name, matrix in linear.items()
        },
        **{
            f"has {one} and {other} swapped": lambda linear, swap={one: other, other: one}: {
                name: {"kernel": linear[swap.get(name, name)].T} for name in linear
            }
            for one, other in (("query", "key"), ("key", "value"))
        },
        "has the level params, which apply adds: return what lies below it": lambda linear: {
            "params": {name: {"kernel": matrix.T} for name, matrix in linear.items()}
        },
        "reshapes in place of transposing, which mixes the numbers up": lambda linear: {
            name: {"kernel": matrix.reshape(matrix.shape[::-1])} for name, matrix in linear.items()
        },
    },
    properties=[_computes_the_same],
    observe=_dictionaries,
)


def _fields(kind: Any) -> Callable[[Any], Any]:
    def observe(module: Any) -> Any:
        if isinstance(module, type):
            raise WrongAnswerError(f"returns the class: call it, {module.__name__}(...)")
        if not isinstance(module, kind):
            raise WrongAnswerError(f"returns a {type(module).__name__}, but a jaxattn.{kind.__name__} is asked for")
        for name in ("num_heads", "features"):
            if not isinstance(getattr(module, name), int | np.integer):
                raise WrongAnswerError(
                    f"has {name}={getattr(module, name)}, but a whole number is needed: divide with //"
                )
        return _module(module.num_heads, module.features, module.use_bias)

    return observe


def _module(num_heads: int, features: int, use_bias: bool = False) -> dict[str, int]:
    return {"num_heads": num_heads, "features": features, "use_bias": use_bias}


WRAPPER = Exercise(
    name="wrapper_of_width",
    cases=[(2, 2), (12, 3)],
    reference=lambda width, heads: _module(heads, width // heads),
    mistakes={
        "makes heads as wide as the whole output: features is the width of one head, and H heads stand side by "
        "side": lambda width, heads: _module(heads, width),
        "has the numbers of heads and features swapped": lambda width, heads: _module(width // heads, heads),
        "has one head: pass num_heads on, and make each head narrower": lambda width, heads: _module(1, width),
        "always has features=1": lambda width, heads: _module(heads, 1),
    },
    observe=_fields(MultiHeadAttentionWrapper),
)
GPT2 = Exercise(
    name="gpt2_attention",
    cases=[()],
    reference=lambda: _module(12, 768),
    mistakes={
        "has features for one head: features of MultiHeadAttention is the width of all heads together": lambda: _module(
            12, 64
        ),
        "has 12 times the width: 768 is the width of all heads together": lambda: _module(12, 12 * 768),
        "has the numbers of heads and features swapped": lambda: _module(768, 12),
    },
    observe=_fields(MultiHeadAttention),
)
PARAMETERS = Exercise(
    name="number_of_parameters",
    cases=[()],
    reference=lambda: 4 * 768**2 + 768,
    mistakes={
        "leaves out the output projection's bias": lambda: 4 * 768**2,
        "leaves out the output projection": lambda: 3 * 768**2,
        "leaves out the output projection's matrix": lambda: 3 * 768**2 + 768,
        "counts the query, key and value matrices as one": lambda: 2 * 768**2 + 768,
        "counts a bias for queries, keys and values, which this layer does not have": lambda: 4 * (768**2 + 768),
        "counts biases of queries, keys and values in place of the output projection's": lambda: 4 * 768**2 + 3 * 768,
        "counts each matrix once for each head: all heads together are 768 wide": lambda: 12 * (4 * 768**2 + 768),
        "counts each head's matrices as 768 wide: all heads together are": lambda: 12 * 4 * 768**2 + 768,
        "counts one head of width 64": lambda: 3 * 768 * 64,
    },
)

__all__ = ["GPT2", "PARAMETERS", "TRANSFER", "WRAPPER"]
