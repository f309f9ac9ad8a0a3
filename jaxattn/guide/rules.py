"""The rules by which entries follow from operands, in float64: what `rules.js` writes out, as whole arrays."""

from collections.abc import Callable, Sequence

import numpy as np

from jaxattn.guide.section import Equation

Arrays = Sequence[np.ndarray]


def evaluate(equation: Equation, operands: Arrays, shape: tuple[int, ...]) -> np.ndarray:
    """Compute the result of an equation, of this shape, by its rule.

    Raises:
        ValueError: there is no such rule.

    Example:
        >>> import numpy as np
        >>> from jaxattn.guide.rules import evaluate
        >>> from jaxattn.guide.section import Equation
        >>> equation = Equation("Squares", "", "einsum", ["a", "a"], "b", "rk,kc->rc")
        >>> evaluate(equation, [np.full((2, 2), 3.0)] * 2, (2, 2)).tolist()
        [[18.0, 18.0], [18.0, 18.0]]
    """
    operands = [np.asarray(array, np.float64) for array in operands]
    if equation.rule == "einsum":
        return _einsum(equation.spec, operands)
    if equation.rule == "split":
        H, T, D = shape
        return np.moveaxis(operands[0].reshape(T, H, D), 1, 0)
    if equation.rule not in RULES:
        raise ValueError(f"rule {equation.rule!r} is unknown: there are einsum, split, {', '.join(RULES)}")
    return np.broadcast_to(RULES[equation.rule](*operands), shape)


def _einsum(spec: str, operands: Arrays) -> np.ndarray:
    terms, result = spec.split("->")
    factors = [term for term in terms.split(",") if not term.startswith("+")]
    product = np.einsum(f"{','.join(factors)}->{result}", *operands[: len(factors)])
    return product + sum(operands[len(factors) :], np.zeros(()))  # a bias (1, columns) broadcasts


def _product(*arrays: np.ndarray) -> np.ndarray:
    return np.prod(np.stack(np.broadcast_arrays(*arrays)), axis=0)


def _sum(*arrays: np.ndarray) -> np.ndarray:
    return np.sum(np.stack(np.broadcast_arrays(*arrays)), axis=0)


def _scale(scores: np.ndarray, width: np.ndarray, temperature: np.ndarray | float = 1.0) -> np.ndarray:
    return scores / np.sqrt(width) / temperature


def _softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def _dropout(weights: np.ndarray, draws: np.ndarray, rate: np.ndarray) -> np.ndarray:
    return np.where(draws >= rate, weights / (1 - rate), 0)


def _join(heads: np.ndarray) -> np.ndarray:
    return np.concatenate(list(heads), axis=-1)


def _additive(queries: np.ndarray, keys: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (v[0] * np.tanh(queries[:, None] + keys[None])).sum(-1)


def _rotate(vectors: np.ndarray, angles: np.ndarray) -> np.ndarray:
    first, second = np.split(vectors, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


RULES: dict[str, Callable[..., np.ndarray]] = {
    "product": _product,
    "sum": _sum,
    "scale": _scale,
    "mask": lambda scores, mask: np.where(mask > 0, scores, -np.inf),
    "softmax": _softmax,
    "zero": lambda weights, mask: np.where(mask > 0, weights, 0),
    "normalize": lambda weights: weights / weights.sum(-1, keepdims=True),
    "row_sum": lambda weights: weights.sum(-1, keepdims=True),
    "dropout": _dropout,
    "join": _join,
    "additive": _additive,
    "rotate": _rotate,
}
