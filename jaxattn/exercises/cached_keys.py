"""What is checked in the step that decodes one token with the keys and values of the earlier ones."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxattn.exercises.checking import Exercise, Function
from jaxattn.exercises.numbers import MIXED_UP, draw, softmax


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

__all__ = ["DECODE"]
