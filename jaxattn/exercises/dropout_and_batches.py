"""What is checked in the steps with random numbers: dropout, batches, stacked heads."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxattn.exercises.checking import Exercise, Function, Property
from jaxattn.exercises.numbers import MIXED_UP, attend, draw, tril
from jaxattn.exercises.properties import agrees, causal, differs

_RATE = 0.2
_ONES = np.ones((60, 50), np.float32)
_FEW = _ONES[:8, :6]  # soon done by loops, too


def _keys(seed: int = 0) -> Any:
    return jax.random.key(seed)


def _rescaled(function: Function) -> str | None:
    result = function(3 * _ONES, _RATE, _keys())
    if isinstance(result, tuple):
        return f"returns {len(result)} results: return the weights alone"
    if np.asarray(result).dtype == bool:
        return "returns which weights are kept: multiply this with the weights, and rescale"
    dropped = np.asarray(result, np.float64)
    if dropped.shape != _ONES.shape:
        return f"returns an array of shape {dropped.shape}, but the weights have {_ONES.shape}"
    if not np.isfinite(dropped).all():
        return "gives NaN or inf: a dropped weight is 0 (−∞ is for scores, before the softmax)"
    kept = dropped[dropped != 0]
    if kept.size in (0, dropped.size) and _drops_all_or_none(function):
        return "drops all weights or none: draw for each entry, with weights.shape"
    if kept.size == 0:
        return "drops every weight"
    if np.allclose(dropped.sum(-1), 1, atol=1e-3):
        return "lets each row sum to 1 again: dropout multiplies all survivors by the same factor, 1 / (1 - rate)"
    factors = np.unique(np.round(kept / 3, 4))
    if len(factors) > 1:
        return f"multiplies kept weights by different factors, such as {factors[0]} and {factors[-1]}"
    factor, share = float(factors[0]), kept.size / dropped.size
    if share == 1:
        return "drops nothing" + (", but rescales: x.at[i].set(y) returns a new array" if factor > 1 else "")
    if abs(factor - 1 / _RATE) < 1e-3 and abs(share - _RATE) < 0.05:
        return "takes rate for the share that is kept: it is the share that is dropped"
    known = {
        1 / _RATE: "multiplies the survivors by 1 / rate: each stays the same on average with 1 / (1 - rate)",
        1.0: "does not rescale the survivors: multiply them by 1 / (1 - rate)",
        1 - _RATE: "multiplies the survivors by 1 - rate: divide by it",
        1 / (1 - _RATE) ** 2: "rescales the survivors twice",
    }
    for wrong, sentence in known.items():
        if abs(factor - wrong) < 1e-3:
            return sentence
    if abs(factor - 1 / (1 - _RATE)) > 1e-3:
        return f"multiplies the survivors by {factor}, but 1 / (1 - rate) is {1 / (1 - _RATE)} here"
    if abs(share - (1 - _RATE)) < 0.05:
        return None
    if abs(share - _RATE) < 0.05:
        return "keeps each weight with probability rate: rate is the share that is dropped"
    return f"drops a share of {1 - share:.2f}, but the rate is {_RATE}"


def _drops_all_or_none(function: Function) -> bool:
    kept = [np.asarray(function(_FEW, 0.5, _keys(seed))) != 0 for seed in range(8)]
    return {(k.all(), k.any()) for k in kept} == {(True, True), (False, False)}


def _drops_entries_one_by_one(function: Function) -> str | None:
    kept = np.asarray(function(_FEW, 0.5, _keys())) != 0
    for axis, word in ((0, "row"), (1, "column")):
        if (kept == kept.take([0], axis)).all():
            return f"drops the same entries in every {word}: draw for each entry, with weights.shape"
        if (kept == kept.take([0], 1 - axis)).all():
            return "drops whole rows or columns: draw for each entry, with weights.shape"
    return None


DROPOUT = Exercise(
    name="dropout",
    cases=[],
    properties=[
        _rescaled,
        _drops_entries_one_by_one,
        differs(
            "drops the same entries with every key: draw with the key that is passed in",
            lambda f: f(_FEW, 0.5, _keys(0)),
            lambda f: f(_FEW, 0.5, _keys(1)),
        ),
        agrees(
            "drops other entries each time, although the key is the same: draw with jax.random and the key",
            lambda f: f(_FEW, 0.5, _keys()),
            lambda f: f(_FEW, 0.5, _keys()),
        ),
        agrees("changes weights at a rate of 0", lambda f: f(_FEW, 0.0, _keys()), lambda f: _FEW),
    ],
)


def _one(x: Any, wq: Any, wk: Any, wv: Any, mask: bool = True) -> Any:
    allowed = tril(len(x)) if mask else None
    return attend(x @ wq, x @ wk, x @ wv, scale=wk.shape[-1] ** -0.5, mask=allowed)


_BATCH = draw(5, (3, 5, 6), (6, 4), (6, 4), (6, 4))


def _as_one_sequence(x: Any, wq: Any, wk: Any, wv: Any, rate: float, key: Any) -> Any:
    return _one(x.reshape(-1, x.shape[-1]), wq, wk, wv).reshape(*x.shape[:2], -1)


def _twins(function: Function) -> Any:
    x = np.stack([_BATCH[0][0]] * 2)
    return np.asarray(function(x, *_BATCH[1:], 0.5, _keys()))


def _rescales(rows: Function, values: np.ndarray) -> Property:
    """The first token attends to itself alone: its context is its value, rescaled, or 0 where that is dropped."""

    def holds(function: Function) -> str | None:
        found = np.asarray(rows(function))
        right = np.isclose(found, values / (1 - _RATE), atol=1e-3).all(-1) | (found == 0).all(-1)
        return None if right.all() else "rescales the weights that dropout keeps by another factor than 1 / (1 - rate)"

    return holds


# Each token attends alike to itself and the ones before it, and its context is its weights: the values are rows of ones.
_ALIKE = np.eye(8, dtype=np.float32)
_ALIKE_HEAD = (0 * _ALIKE, 0 * _ALIKE, _ALIKE)


def _drops_single_weights(weights: Callable[[Function], Any]) -> Property:
    """No rows or columns of the weights of `_ALIKE` are dropped as a whole."""

    def holds(function: Function) -> str | None:
        kept = np.asarray(weights(function)) != 0
        for message, parts in (
            ("drops all weights of a query or none", [kept[t, : t + 1] for t in range(8)]),
            ("drops the weights of a key for all queries or for none", [kept[t:, t] for t in range(8)]),
        ):
            if all(part.all() or not part.any() for part in parts):
                return f"{message}: draw for each entry, with weights.shape"
        return None

    return holds


BATCHED = Exercise(
    name="batched_attention",
    cases=[(*_BATCH, 0.0, _keys())],
    reference=lambda x, wq, wk, wv, rate, key: np.stack([_one(e, wq, wk, wv) for e in x]),
    mistakes={
        "joins the examples to one long sequence: no example may attend to another": _as_one_sequence,
        "maps over the tokens in place of the examples: in_axes=0 for x": (
            lambda x, *a: np.stack([_one(x[:, t], *a[:3]) for t in range(x.shape[1])]),
            lambda x, *a: np.stack([_one(x[:, t], *a[:3]) for t in range(x.shape[1])], 1),
        ),
        "returns the first example only": lambda x, *a: _one(x[0], *a[:3]),
        "has the axes of examples and tokens swapped in the output": lambda x, *a: np.stack(
            [_one(e, *a[:3]) for e in x], 1
        ),
        "averages over the examples": lambda x, *a: np.mean([_one(e, *a[:3]) for e in x], 0),
        "lost the causal mask": lambda x, q, k, v, *_: np.stack([_one(e, q, k, v, mask=False) for e in x]),
        "joins the examples along the tokens: stack them on an axis of their own": lambda x, *a: np.concatenate(
            [_one(e, *a[:3]) for e in x]
        ),
    },
    properties_once_right=[
        differs(
            "drops nothing, or the same with every key: pass on keys split from the one that came",
            lambda f: f(*_BATCH, 0.5, _keys(0)),
            lambda f: f(*_BATCH, 0.5, _keys(1)),
        ),
        differs(
            "uses one key for all examples, so that all drop the same entries: split the key",
            lambda f: _twins(f)[0],
            lambda f: _twins(f)[1],
        ),
        agrees(
            "gives other results each time, although the key is the same",
            lambda f: f(*_BATCH, 0.5, _keys(0)),
            lambda f: f(*_BATCH, 0.5, _keys(0)),
        ),
        _rescales(lambda f: f(*_BATCH, _RATE, _keys())[:, 0], _BATCH[0][:, 0] @ _BATCH[3]),
        _drops_single_weights(lambda f: f(_ALIKE[None], *_ALIKE_HEAD, 0.5, _keys())[0]),
    ],
)

_TOKENS, *_MATRICES = draw(6, (5, 6), *[(6, 4)] * 9)
_HEADS = [tuple(_MATRICES[3 * h : 3 * h + 3]) for h in range(3)]
_EQUAL = [_HEADS[0], _HEADS[0]]


def _outputs(x: Any, heads: Any) -> list[Any]:
    return [_one(x, *head) for head in heads]


def _as_one_head(x: Any, heads: Any, *_: Any) -> Any:
    wq, wk, wv = (np.concatenate(matrices, -1) for matrices in zip(*heads, strict=True))
    return _one(x, wq, wk, wv)


STACKED = Exercise(
    name="stacked_heads",
    cases=[(_TOKENS, _HEADS, 0.0, _keys())],
    reference=lambda x, heads, rate, key: np.concatenate(_outputs(x, heads), -1),
    mistakes={
        "joins the heads in the wrong order: head 0 comes first": lambda x, h, *_: np.concatenate(
            _outputs(x, h)[::-1], -1
        ),
        "adds the heads up: they stand side by side": lambda x, h, *_: np.sum(_outputs(x, h), 0),
        "averages the heads: they stand side by side": lambda x, h, *_: np.mean(_outputs(x, h), 0),
        "joins the heads along the tokens: join along the width, axis=-1": lambda x, h, *_: np.concatenate(
            _outputs(x, h), 0
        ),
        "stacks the heads on an axis of their own: join along the width, axis=-1": (
            lambda x, h, *_: np.stack(_outputs(x, h)),
            lambda x, h, *_: np.stack(_outputs(x, h), -1),
            lambda x, h, *_: np.stack(_outputs(x, h), -2),
        ),
        "interleaves the heads' features: the features of a head stay together": lambda x, h, *_: np.stack(
            _outputs(x, h), -1
        ).reshape(len(x), -1),
        "mixes tokens and heads up: (H, T, D) needs a transpose before it is reshaped": lambda x, h, *_: np.stack(
            _outputs(x, h)
        ).reshape(len(x), -1),
        "uses the first head every time": lambda x, h, *_: np.concatenate(_outputs(x, [h[0]] * len(h)), -1),
        "returns the first head only": lambda x, h, *_: _outputs(x, h)[0],
        "returns the last head only": lambda x, h, *_: _outputs(x, h)[-1],
        "attends with one wide head: attend with each head on its own": _as_one_head,
        **{
            sentence: lambda x, h, *_, order=order: np.concatenate(_outputs(x, [[w[i] for i in order] for w in h]), -1)
            for sentence, order in MIXED_UP.items()
        },
    },
    properties=[causal(_TOKENS, _HEADS, 0.0, _keys())],
    properties_once_right=[
        differs(
            "drops nothing, or the same with every key: pass on keys split from the one that came",
            lambda f: f(_TOKENS, _HEADS, 0.5, _keys(0)),
            lambda f: f(_TOKENS, _HEADS, 0.5, _keys(1)),
        ),
        differs(
            "uses one key for all heads, so that all drop the same entries: split the key",
            lambda f: np.asarray(f(_TOKENS, _EQUAL, 0.5, _keys()))[:, :4],
            lambda f: np.asarray(f(_TOKENS, _EQUAL, 0.5, _keys()))[:, 4:],
        ),
        _rescales(
            lambda f: f(_TOKENS, _HEADS, _RATE, _keys())[0].reshape(3, 4), np.stack([_TOKENS[0] @ h[2] for h in _HEADS])
        ),
        _drops_single_weights(lambda f: f(_ALIKE, [_ALIKE_HEAD], 0.5, _keys())),
    ],
)

__all__ = ["BATCHED", "DROPOUT", "STACKED"]
