"""What is checked in the step of parallel heads."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxattn.exercises.checking import Exercise, Function, numbers, same
from jaxattn.exercises.numbers import MIXED_UP, attend, draw, heads_of, joined, softmax, tril
from jaxattn.exercises.properties import causal

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

__all__ = ["PARALLEL"]
