"""How a learner's function is checked, and how its mistake gets a name.

The function is run on inputs on which all known mistakes give different results. Where it agrees with the right result,
properties are checked that numbers alone do not show, such as gradients. Where it agrees with a known mistake, that is
what was done. Otherwise a wrong shape is reported, or else the first property that fails, and at last the entry that
differs most.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxattn.exercises.errors import explain_error, shapes_of

Function = Callable[..., Any]
Property = Callable[[Function], str | None]

TO_BE_FILLED_IN = "is still to be filled in"
_ORDINALS = ("first", "second", "third")


class WrongAnswerError(Exception):
    """What is wrong with a learner's function, in one sentence."""


@dataclasses.dataclass(frozen=True)
class Exercise:
    """One function to fill in."""

    name: str
    cases: Sequence[tuple]
    # What is right; and for each known mistake the sentence that a learner reads, and what it computes, in all its ways.
    reference: Function | None = None
    mistakes: Mapping[str, Function | tuple[Function, ...]] = dataclasses.field(default_factory=dict)
    # Each returns a sentence where it does not hold.
    properties: Sequence[Property] = ()
    # As above, but they say nothing of a function whose numbers are wrong.
    properties_once_right: Sequence[Property] = ()
    # Turns a result that is no array, such as a module, into numbers.
    observe: Function = lambda result: result


def check(function: Function, exercise: Exercise, file: str = "") -> str | None:
    """Return what is wrong with a function, or None.

    `file` is the learner's: errors name its line.
    """
    try:
        return _find_mistake(_guarded(function, file), exercise)
    except WrongAnswerError as wrong:
        return str(wrong)


def _find_mistake(function: Function, exercise: Exercise) -> str | None:
    if exercise.reference is not None:
        results = _results(function, exercise)
        if not _right(results, exercise):
            expected = [numbers(exercise.reference(*args)) for args in exercise.cases]
            return (
                _named_mistake(results, exercise)
                or _wrong_shape(results, expected)
                or _failed_property(function, exercise.properties)
                or _difference(results, expected)
            )
    return _failed_property(function, (*exercise.properties, *exercise.properties_once_right))


def _results(function: Function, exercise: Exercise) -> list[Any]:
    """Run all cases; where a later one raises, the earlier ones may already show a known mistake."""
    results: list[Any] = []
    try:
        for args in exercise.cases:
            results.append(numbers(exercise.observe(function(*args))))
    except WrongAnswerError:
        sentence = None if _right(results, exercise) else _named_mistake(results, exercise)
        if sentence is None:
            raise
        raise WrongAnswerError(sentence) from None
    return results


def _right(results: Sequence[Any], exercise: Exercise) -> bool:
    assert exercise.reference is not None
    cases = exercise.cases[: len(results)]
    return all(same(result, numbers(exercise.reference(*args))) for result, args in zip(results, cases, strict=True))


def _named_mistake(results: Sequence[Any], exercise: Exercise) -> str | None:
    for sentence, mistakes in exercise.mistakes.items():
        for mistake in mistakes if isinstance(mistakes, tuple) else (mistakes,):
            computed = [attempt(mistake, args) for args in exercise.cases[: len(results)]]
            if all(map(same, results, computed)):
                return sentence
    return None


def _failed_property(function: Function, properties: Sequence[Property]) -> str | None:
    for holds in properties:
        try:
            sentence = holds(function)
        except (ValueError, TypeError, IndexError) as error:
            return f"returns what cannot be checked: {' '.join(str(error).split())[:200]}"
        if sentence is not None:
            return sentence
    return None


def _guarded(function: Function, file: str) -> Function:
    """Give a function JAX's arrays, and turn what it raises into a sentence with the learner's line.

    Errors of tracers pass: they mean that JAX cannot differentiate it.
    """

    def run(*args: Any) -> Any:
        args = jax.tree.map(lambda arg: jnp.asarray(arg) if isinstance(arg, np.ndarray) else arg, args)
        try:
            result = function(*args)
        except NotImplementedError:
            names = getattr(getattr(function, "__code__", None), "co_names", ())
            begun = set(names) - {"NotImplementedError"}
            raise WrongAnswerError(
                "still has the line raise NotImplementedError: delete it" if begun else TO_BE_FILLED_IN
            ) from None
        except (jax.errors.JAXTypeError, jax.errors.TracerArrayConversionError):
            raise
        except (Exception, SystemExit) as error:
            shapes = shapes_of(function, args) if isinstance(error, TypeError | ValueError | IndexError) else ""
            raise WrongAnswerError(". ".join(filter(None, [explain_error(error, file), shapes]))) from error
        if result is None:
            raise WrongAnswerError("returns nothing: end it with return")
        if isinstance(result, list):
            raise WrongAnswerError(
                "returns a list: return an array, which jnp.array and jnp.stack make, or a tuple of several results"
            )
        return result

    return run


def same(result: Any, expected: Any) -> bool:
    """Return whether two trees of arrays agree: whole numbers exactly, others to float32's accuracy; NaN equals NaN."""
    if str(jax.tree.structure(result)) != str(jax.tree.structure(expected)):
        return False
    pairs = zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True)
    return all(a.shape == b.shape and _close(a, b) for a, b in pairs)


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    accuracy = 0.0 if b.dtype == np.int64 else 1e-4
    return np.allclose(a, b, rtol=accuracy, atol=accuracy, equal_nan=True)


def numbers(result: Any) -> PyTree:
    """Return a tree of arrays: int64 for whole numbers and truth values, float64 for others."""
    try:
        return jax.tree.map(_array, result)
    except (TypeError, ValueError):
        raise WrongAnswerError(f"returns a {type(result).__name__} that holds no numbers") from None


def _array(leaf: Any) -> np.ndarray:
    if isinstance(leaf, str):
        raise TypeError
    kind = np.asarray(leaf).dtype.kind
    return np.asarray(leaf, np.int64 if kind in "biu" else np.float64)


def attempt(mistake: Function, args: tuple) -> PyTree:
    """Return what a mistake computes, or None where it cannot compute anything."""
    with np.errstate(all="ignore"):
        try:
            return numbers(mistake(*args))
        except (ValueError, IndexError, TypeError, WrongAnswerError):
            return None


def _wrong_shape(results: Sequence[Any], expected: Sequence[Any]) -> str | None:
    """Describe the first result with another structure or shape."""
    for result, right in zip(results, expected, strict=True):
        if str(jax.tree.structure(result)) != str(jax.tree.structure(right)):
            return f"returns {_outline(result)}, but {_outline(right)} is expected"
        for place, a, b in _leaves(result, right):
            if a.shape != b.shape:
                return f"returns an array of shape {a.shape}{place}, but {b.shape} is expected"
    return None


def _difference(results: Sequence[Any], expected: Sequence[Any]) -> str:
    """Describe the worst entry of the first case that differs; of several arrays, what the others are made of is last."""
    result, right = next(pair for pair in zip(results, expected, strict=True) if not same(*pair))
    place, a, b = [leaf for leaf in _leaves(result, right) if not same(*leaf[1:])][-1]
    if not np.isfinite(a).all():
        return f"returns {'NaN' if np.isnan(a).any() else 'inf'} at {_index(~np.isfinite(a))}{place}"
    at = np.unravel_index(np.argmax(np.abs(a - b)), a.shape)
    where = f" at {[int(i) for i in at]}" if at else ""
    return f"returns {_entry(a[at])}{where}{place}, but {_entry(b[at])} is expected"


def _leaves(result: Any, right: Any) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Pair the arrays of two trees, each with its place in words."""
    paths = jax.tree_util.tree_leaves_with_path(right)
    return [(_place(path), a, b) for (path, b), a in zip(paths, jax.tree.leaves(result), strict=True)]


def _place(path: tuple) -> str:
    if len(path) == 1 and isinstance(path[0], jax.tree_util.SequenceKey):
        return f" as its {_ORDINALS[path[0].idx]} result"
    return f" as {'/'.join(str(getattr(key, 'key', key)) for key in path)}" if path else ""


def _entry(number: Any) -> str:
    return str(number) if number.dtype == np.int64 else f"{number:.4f}"


def _index(where: Any) -> list[int]:
    return [int(i) for i in np.argwhere(where)[0]]


def _outline(tree: Any) -> str:
    outline = jax.tree.map(lambda leaf: leaf.shape, tree)
    return f"an array of shape {outline}" if isinstance(tree, np.ndarray) else str(outline)
