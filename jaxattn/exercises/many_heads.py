"""What is checked in the last steps: parallel heads, the cache, and the book's exercises."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxattn.exercises.checking import Exercise, Function, WrongAnswerError, numbers, same
from jaxattn.exercises.numbers import MIXED_UP, attend, draw, heads_of, joined, softmax, tril
from jaxattn.exercises.properties import causal
from jaxattn.stages import MultiHeadAttention, MultiHeadAttentionWrapper, SelfAttention

_HEADS = 2
_PARALLEL = (*draw(7, (5, 6), *[(6, 8)] * 3, (8, 7), (7,)), _HEADS)


def _parallel(
    x: Any,
    wq: Any,
    wk: Any,
    wv: Any,
    out: Any,
    bias: Any,
    H: int,
    *,
    split: Callable = heads_of,
    join: Callable = joined,
    project: bool = True,
    scale: float | None = None,
    mask: Any = True,
    **options: Any,
) -> Any:
    query, key, value = (split(x @ w, H) for w in (wq, wk, wv))
    scale = key.shape[-1] ** -0.5 if scale is None else scale
    context = join(attend(query, key, value, scale=scale, mask=tril(len(x)) if mask is True else mask, **options))
    return context @ out + bias if project else context


def _viewed(array: Any, H: int) -> Any:
    return array.reshape(H, array.shape[0], -1)


def _interleaved(array: Any, H: int) -> Any:
    return array.reshape(array.shape[0], -1, H).transpose(2, 0, 1)


def _joined_without_transpose(heads: Any) -> Any:
    return heads.reshape(heads.shape[1], -1)


_variant: Callable[..., Function] = functools.partial(functools.partial, _parallel)
_TRIL = tril(5)


def _with_any_fill(mask: Any, **options: Any) -> tuple[Function, ...]:
    """Where the softmax has nothing to attend to, it gives 0, equal weights, or NaN."""
    return tuple(_variant(mask=mask, fill=fill, **options) for fill in (None, -1e30, -np.inf))


def _takes_any_number_of_heads(function: Function) -> str | None:
    args: Any = (*_PARALLEL[:-1], 4)
    right = same(numbers(function(*args)), numbers(_parallel(*args)))
    return None if right else "is right with 2 heads, but not with 4: use num_heads"


PARALLEL = Exercise(
    name="parallel_heads",
    cases=[_PARALLEL],
    reference=_parallel,
    mistakes={
        "is not scaled: divide the scores by √D, the root of a head's width": _variant(scale=1.0),
        "is scaled by the width of all heads: each head's dot products sum over D = H · D / H": _variant(scale=8**-0.5),
        "is scaled by the model's width d_in: each head's dot products sum over D": _variant(scale=6**-0.5),
        "divides by D, not by its root": _variant(scale=1 / 4),
        "multiplies by √D: divide": _variant(scale=2.0),
        "is scaled by the number of tokens": _variant(scale=5**-0.5),
        "has no softmax": _variant(weigh=lambda s, mask: s * mask),
        "has no mask, and so leaks the future": _variant(mask=None),
        "has the mask inverted": _with_any_fill(mask=~_TRIL),
        "has the mask upside down (an upper triangle)": _variant(mask=_TRIL.T),
        "has a mask that is off by one, which lets tokens attend to the next one": _variant(mask=tril(5, 1)),
        "has a mask that is off by one: a token may attend to itself": _with_any_fill(mask=tril(5, -1)),
        "masks after the softmax and lacks the renormalisation: rows sum to less than 1": _variant(
            weigh=lambda s, mask: softmax(s) * mask
        ),
        "sets masked scores to 0, which still gets weight, because exp(0) = 1": _variant(
            weigh=lambda s, mask: softmax(s * mask)
        ),
        "applies softmax over the heads: axis=-1 is that of the keys": _with_any_fill(mask=_TRIL, axis=0),
        "applies softmax over the queries: axis=-1 is that of the keys": _variant(axis=-2),
        "splits with the view before the transpose left out: reshape (T, H · D) to (T, H, D) first, then swap to "
        "(H, T, D); a direct reshape to (H, T, D) mixes tokens and features": _variant(split=_viewed),
        "joins without the transpose: swap (H, T, D) back to (T, H, D) before the reshape": _variant(
            join=_joined_without_transpose
        ),
        "splits and joins without a transpose: swap tokens and heads after the first reshape and before the "
        "last": _variant(split=_viewed, join=_joined_without_transpose),
        "splits to (T, D, H): a head's columns stand side by side, so reshape to (T, H, D)": _variant(
            split=_interleaved
        ),
        "splits to (T, D, H) and joins the same way: a head's columns stand side by side": _variant(
            split=_interleaved, join=lambda heads: heads.transpose(1, 2, 0).reshape(heads.shape[1], -1)
        ),
        "concatenates the heads in the wrong order: head 0 comes first": _variant(join=lambda h: joined(h[::-1])),
        "interleaves the heads when it joins them: the features of a head stay together": _variant(
            join=lambda heads: heads.transpose(1, 2, 0).reshape(heads.shape[1], -1)
        ),
        "lacks the output projection: @ w_out + b_out": _variant(project=False),
        "lacks the output projection's bias": lambda *a: _parallel(*a) - a[5],
        "attends with one wide head: split into heads first": lambda x, q, k, v, o, b, H: _parallel(
            x, q, k, v, o, b, 1
        ),
        "attends with one wide head, scaled for a narrow one: split into heads first": lambda x, q, k, v, o, b, H: (
            _parallel(x, q, k, v, o, b, 1, scale=0.5)
        ),
        "attends from head to head within a token: swap (T, H, D) to (H, T, D) first": _variant(
            split=lambda array, H: array.reshape(len(array), H, -1), join=lambda c: c.reshape(len(c), -1), mask=None
        ),
        **{
            sentence: lambda x, *a, order=order: _parallel(x, *(a[i] for i in order), *a[3:])
            for sentence, order in MIXED_UP.items()
        },
    },
    properties=[causal(*_PARALLEL)],
    properties_once_right=[_takes_any_number_of_heads],
)


def _decode(x: Any, keys: Any, values: Any, wq: Any, wk: Any, wv: Any, **options: Any) -> Any:
    all_keys = np.concatenate([keys, (x @ wk)[None]])
    all_values = np.concatenate([values, (x @ wv)[None]])
    return _from_cache(x @ wq, all_keys, all_values, **options), all_keys, all_values


def _from_cache(query: Any, keys: Any, values: Any, scale: float | None = None) -> Any:
    return softmax(keys @ query * (keys.shape[-1] ** -0.5 if scale is None else scale)) @ values


_DECODE = draw(8, (6,), (2, 4), (2, 4), (6, 4), (6, 4), (6, 4))
_FIRST = (_DECODE[0], np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32), *_DECODE[3:])


def _with_context(context: Callable) -> Function:
    return lambda *a: (context(*a), *_decode(*a)[1:])


DECODE = Exercise(
    name="decode_step",
    cases=[_DECODE, draw(9, (6,), (1, 4), (1, 4), (6, 4), (6, 4), (6, 4)), _FIRST],
    reference=_decode,
    mistakes={
        "is not scaled: divide the scores by √d_out": functools.partial(_decode, scale=1.0),
        "is scaled by the model's width d_in": functools.partial(_decode, scale=6**-0.5),
        "is scaled by the number of tokens": lambda x, k, *a: _decode(x, k, *a, scale=(len(k) + 1) ** -0.5),
        "divides by d_out, not by its root": functools.partial(_decode, scale=1 / 4),
        "has no softmax": _with_context(
            lambda x, k, v, wq, wk, wv: np.vstack([k, x @ wk]) @ (x @ wq) / 2 @ np.vstack([v, x @ wv])
        ),
        "gives every token the weight 1: softmax goes over the keys, not over an axis of length 1": _with_context(
            lambda x, k, v, wq, wk, wv: v.sum(0) + x @ wv
        ),
        "attends to the first token alone: the newest may attend to all, so no mask is needed": _with_context(
            lambda x, k, v, wq, wk, wv: np.vstack([v, x @ wv])[0]
        ),
        # To what is left at t = 0, there are three answers.
        "leaves the newest token out: add its key and value before it attends": tuple(
            _with_context(
                lambda x, k, v, wq, wk, wv, alone=alone: _from_cache(x @ wq, k, v) if len(k) else alone(x @ wv)
            )
            for alone in (np.zeros_like, np.asarray, lambda value: np.full_like(value, np.nan))
        ),
        "leaves the cache as it was: JAX drops a write beyond an array's end, so append with "
        "jnp.concatenate": lambda x, k, v, wq, *_: (_from_cache(x @ wq, k, v) if len(k) else np.zeros(4), k, v),
        "drops the oldest token from the cache: it grows by one": lambda x, k, v, *w: _decode(x, k[1:], v[1:], *w),
        "returns the old cache: return the keys and values with the newest token's": lambda *a: (
            _decode(*a)[0],
            *a[1:3],
        ),
        "replaces the last token in the cache: append the newest one": lambda x, k, v, *w: _decode(
            x, k[:-1], v[:-1], *w
        ),
        "keeps only the newest token in the cache": lambda x, k, v, wq, wk, wv: (
            x @ wv,
            (x @ wk)[None],
            (x @ wv)[None],
        ),
        "adds the newest token at the front of the cache: append it": lambda *a: (
            _decode(*a)[0],
            *(np.roll(array, 1, 0) for array in _decode(*a)[1:]),
        ),
        "averages the keys: multiply the weights with the values": _with_context(
            lambda x, k, v, wq, wk, wv: _from_cache(x @ wq, *[_decode(x, k, v, wq, wk, wv)[1]] * 2)
        ),
        "has keys and values swapped in the results": lambda *a: tuple(_decode(*a)[i] for i in (0, 2, 1)),
        "returns keys and values first: return context, keys, values": lambda *a: (*_decode(*a)[1:], _decode(*a)[0]),
        "returns the context alone: return context, keys, values": lambda *a: _decode(*a)[0],
        "returns the context as a row (1, d_out): it has the shape (d_out,)": lambda *a: (
            _decode(*a)[0][None],
            *_decode(*a)[1:],
        ),
        **{
            sentence: lambda x, k, v, *w, order=order: _decode(x, k, v, *(w[i] for i in order))
            for sentence, order in MIXED_UP.items()
        },
    },
)


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

__all__ = ["DECODE", "GPT2", "PARALLEL", "PARAMETERS", "TRANSFER", "WRAPPER"]
