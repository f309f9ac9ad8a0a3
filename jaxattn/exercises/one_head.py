"""What is checked in the steps of one head: scores, softmax, context, projections, mask."""

from typing import Any

import numpy as np

from jaxattn.exercises.checking import Exercise, Function
from jaxattn.exercises.numbers import BOOK, MIXED_UP, X, attend, draw, softmax, tril, weights_of
from jaxattn.exercises.properties import finite_gradient, rows_sum_to_one

(_SCORES,) = draw(1, (5, 5))
_WEIGHTS = softmax(_SCORES).astype(np.float32)
_MASK = np.array([[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 1]], bool)
(_MANY,) = draw(2, (4, 6))
_W = tuple(np.array(BOOK["trainable"][name], np.float32) for name in ("query", "key", "value"))

RAW_SCORES = Exercise(
    name="raw_scores",
    cases=[(X,), draw(0, (5, 3))],
    reference=lambda x: x @ x.T,
    mistakes={
        "sums over the tokens in place of the width: entry [i, j] must multiply rows i and j, x @ x.T": lambda x: (
            x.T @ x
        ),
        "is scaled already: raw scores are the plain dot products": lambda x: x @ x.T / np.sqrt(x.shape[-1]),
        "is divided by the width: raw scores are the plain dot products": lambda x: x @ x.T / x.shape[-1],
        "applies softmax already: that is the next step": lambda x: softmax(x @ x.T),
        "divides by the vectors' lengths (cosine similarity): raw scores are the plain dot products": lambda x: (
            (x @ x.T) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(x, axis=1)[None]
        ),
        "multiplies without summing: sum over the width": lambda x: x[:, None] * x[None],
        "compares the first token only: every token is a query": lambda x: x @ x[0],
        "compares the second token only, the book's example: every token is a query": lambda x: x @ x[1],
    },
)


def _stays_finite(function: Function) -> str | None:
    result = np.asarray(function(np.array([[1000.0, 0.0], [-1000.0, -1000.0]], np.float32)))
    if np.isfinite(result).all() and np.allclose(result, np.array([[1, 0], [0.5, 0.5]]), atol=1e-3):
        return None
    return "gives NaN or inf for scores of ±1000, because exp overflows, or a whole row is 0: subtract each row's own maximum"


SOFTMAX = Exercise(
    name="softmax_rows",
    cases=[(X @ X.T,), (_SCORES,)],
    reference=softmax,
    mistakes={
        "applies softmax over the queries (axis 0): each column sums to 1, but each row must": lambda s: softmax(s, 0),
        "divides by the sum of all entries: each row has a sum of its own, axis=-1": lambda s: softmax(s, None),
        "does not divide by the sum": (np.exp, lambda s: np.exp(s - s.max(-1, keepdims=True))),
        "divides the scores themselves by their sum: take exp first": lambda s: s / s.sum(-1, keepdims=True),
        "divides each row by another row's sum: keep the sum as a column, keepdims=True": (
            lambda s: np.exp(s) / np.exp(s).sum(-1),
            lambda s: np.exp(s - s.max(-1, keepdims=True)) / np.exp(s - s.max(-1, keepdims=True)).sum(-1),
        ),
        "has the sign of the scores wrong: larger scores must give larger weights": lambda s: softmax(-s),
        "returns the logarithm of the weights": lambda s: np.log(softmax(s)),
        "uses powers of 2 in place of exp": lambda s: softmax(s * np.log(2)),
        "puts all weight on the largest score: softmax shares it out": lambda s: np.eye(s.shape[-1])[s.argmax(-1)],
    },
    properties=[rows_sum_to_one(_MANY), _stays_finite],
)

CONTEXT = Exercise(
    name="context",
    cases=[(softmax(X @ X.T).astype(np.float32), X), (_WEIGHTS, *draw(3, (5, 3)))],
    reference=lambda w, v: w @ v,
    mistakes={
        "sums over the queries: context[i] is weighted by row i of the weights, not by column i": lambda w, v: w.T @ v,
        "averages without the weights": lambda w, v: np.broadcast_to(v.mean(0), v.shape),
        "takes the value with the largest weight alone: average all": lambda w, v: v[w.argmax(-1)],
        "multiplies without summing over the keys": lambda w, v: w[:, :, None] * v[None],
        "applies softmax to weights that are weights already": lambda w, v: softmax(w) @ v,
        "divides by the number of keys once more": lambda w, v: w @ v / len(v),
        "returns the context of the first token only": lambda w, v: w[0] @ v,
        "returns the context of the second token only, the book's example": lambda w, v: w[1] @ v,
        "is transposed: context has a row for each query": lambda w, v: (w @ v).T,
    },
)


def _projected(x: Any, wq: Any, wk: Any, wv: Any, **options: Any) -> Any:
    return attend(x @ wq, x @ wk, x @ wv, **({"scale": wk.shape[-1] ** -0.5} | options))


SELF_ATTENTION = Exercise(
    name="self_attention",
    cases=[(X, *_W), draw(4, (5, 6), (6, 4), (6, 4), (6, 4))],
    reference=_projected,
    mistakes={
        "is not scaled: divide the scores by √d_out": lambda *a: _projected(*a, scale=1.0),
        "is scaled by the model's width d_in: queries and keys have the width d_out": lambda x, *w: _projected(
            x, *w, scale=x.shape[-1] ** -0.5
        ),
        "divides by d_out, not by its root": lambda *a: _projected(*a, scale=1 / a[1].shape[-1]),
        "multiplies by √d_out: divide": lambda *a: _projected(*a, scale=a[1].shape[-1] ** 0.5),
        "is scaled by the number of tokens": lambda x, *w: _projected(x, *w, scale=len(x) ** -0.5),
        "applies softmax over the queries: axis=-1 is that of the keys": lambda *a: _projected(*a, axis=-2),
        "averages the tokens themselves: project them to values, x @ w_value": lambda x, q, k, v: (
            softmax((x @ q) @ (x @ k).T * k.shape[-1] ** -0.5) @ x
        ),
        **{
            sentence: lambda x, *w, order=order: _projected(x, *(w[i] for i in order))
            for sentence, order in MIXED_UP.items()
        },
        "returns the weights: multiply them with the values": lambda x, q, k, v: softmax(
            (x @ q) @ (x @ k).T * k.shape[-1] ** -0.5
        ),
        "has no softmax": lambda x, q, k, v: (x @ q) @ (x @ k).T * k.shape[-1] ** -0.5 @ (x @ v),
        "scales after the softmax: the scores are divided, before it": lambda x, q, k, v: (
            softmax((x @ q) @ (x @ k).T) * k.shape[-1] ** -0.5 @ (x @ v)
        ),
        "masks later tokens, which only the next step does": lambda x, *w: _projected(x, *w, mask=tril(len(x))),
    },
)


def _is_boolean(function: Function) -> str | None:
    dtype = np.asarray(function(3)).dtype
    return None if dtype == np.dtype(bool) else f"is of type {dtype}, but must be bool, so that jnp.where can use it"


CAUSAL_MASK = Exercise(
    name="causal_mask",
    cases=[(4,), (1,), (7,)],
    reference=tril,
    mistakes={
        "is inverted: True must mean that a query may attend": lambda T: ~tril(T),
        "is off by one: it lets each token attend to the next one, and so leaks the future": lambda T: tril(T, 1),
        "is off by one: a token may attend to itself, so keep the diagonal": lambda T: tril(T, -1),
        "has rows and columns swapped (an upper triangle): row i may attend to columns up to i": lambda T: tril(T).T,
        "masks nothing": lambda T: np.ones((T, T)),
        "lets tokens attend to themselves only": np.eye,
        "holds 0 and −∞, which are added to scores: this mask is boolean": lambda T: np.where(tril(T), 0, -np.inf),
    },
    properties=[_is_boolean],
)

_MASK_CASES = [(_SCORES, tril(5)), (_MANY, _MASK)]
_MASKED_MISTAKES: dict[str, Any] = {
    "has the mask inverted: True means that a query may attend": (
        lambda s, m: weights_of(s, ~m),
        lambda s, m: softmax(np.where(m, -1e30, s)),
        lambda s, m: softmax(np.where(m, -np.inf, s)),
    ),
    "ignores the mask": lambda s, m: softmax(s),
    "sets masked scores to 0, which still gets weight, because exp(0) = 1; use a large negative number": lambda s, m: (
        softmax(s * m)
    ),
    "masks after the softmax and lacks the renormalisation: rows sum to less than 1": lambda s, m: softmax(s) * m,
    "gives NaN in a row that may attend to nothing, as 0 / 0: such a row is all 0": lambda s, m: softmax(
        np.where(m, s, -np.inf)
    ),
    "gives equal weights in a row that may attend to nothing: such a row is all 0": lambda s, m: softmax(
        np.where(m, s, -1e30)
    ),
    "applies softmax over the queries: axis=-1 is that of the keys": lambda s, m: weights_of(s, m, axis=-2),
    "uses a triangle of its own: use the mask that is passed in": lambda s, m: weights_of(
        s, np.tril(np.ones(s.shape, bool))
    ),
    "returns the masked scores: apply softmax": lambda s, m: np.where(m, s, -np.inf),
    "uses the wrong sign: masked scores become +∞": lambda s, m: softmax(np.where(m, s, 1e30)),
}
MASKED_WEIGHTS = Exercise(
    name="masked_weights",
    cases=_MASK_CASES,
    reference=weights_of,
    mistakes=_MASKED_MISTAKES,
    properties=[
        rows_sum_to_one(_SCORES, tril(5)),
        finite_gradient(_SCORES, tril(5), mask=tril(5)),
        finite_gradient(_MANY, _MASK, mask=_MASK),
    ],
)


def _renormalized(w: Any, m: Any, axis: int = -1) -> Any:
    kept = np.where(m, w, 0)
    total = kept.sum(axis, keepdims=True)
    return kept / np.where(total == 0, 1, total)


RENORMALIZED = Exercise(
    name="renormalized_weights",
    cases=[(softmax(s).astype(np.float32), m) for s, m in _MASK_CASES],
    reference=_renormalized,
    mistakes={
        "has the mask inverted: True means that a query may attend": lambda w, m: _renormalized(w, ~m),
        "ignores the mask": lambda w, m: w,
        "uses a triangle of its own: use the mask that is passed in": lambda w, m: _renormalized(
            w, np.tril(np.ones(w.shape, bool))
        ),
        "lacks the renormalisation: divide each row by its new sum": lambda w, m: w * m,
        "divides by the sums of the columns: each row must sum to 1": lambda w, m: _renormalized(w, m, axis=-2),
        "gives NaN in a row that may attend to nothing, as 0 / 0: such a row is all 0": lambda w, m: (
            (w * m) / (w * m).sum(-1, keepdims=True)
        ),
        "applies softmax a second time: the weights only need a new sum": lambda w, m: weights_of(w, m),
        "applies softmax a second time, to weights that are 0 where masked: exp(0) = 1": lambda w, m: softmax(w * m),
    },
    properties=[
        rows_sum_to_one(_WEIGHTS, tril(5)),
        finite_gradient(_WEIGHTS, tril(5), mask=tril(5)),
        finite_gradient(softmax(_MANY).astype(np.float32), _MASK, mask=_MASK),
    ],
)

__all__ = ["CAUSAL_MASK", "CONTEXT", "MASKED_WEIGHTS", "RAW_SCORES", "RENORMALIZED", "SELF_ATTENTION", "SOFTMAX"]
