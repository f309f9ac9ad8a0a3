"""What must hold for a learner's function beside its numbers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.exercises.checking import Function, Property


def causal(*args: Any, of: int = 0) -> Property:
    """No output row changes with a later row of argument `of`."""

    def holds(function: Function) -> str | None:
        before = np.asarray(function(*args))
        tokens = np.asarray(args[of])
        for later in range(1, len(tokens)):
            changed = tokens.copy()
            changed[later] += 1.0
            after = np.asarray(function(*args[:of], changed, *args[of + 1 :]))
            for row in range(min(later, len(before))):
                if after.shape == before.shape and not np.allclose(after[row], before[row], atol=1e-5):
                    return f"leaks the future: output {row} changes with input {later}, which comes later"
        return None

    return holds


def rows_sum_to_one(*args: Any) -> Property:
    """Each row of the result sums to 1."""

    def holds(function: Function) -> str | None:
        sums = np.asarray(function(*args)).sum(-1)
        wrong = np.argwhere(np.abs(sums - 1) > 1e-3)
        if len(wrong) == 0:
            return None
        row = [int(i) for i in wrong[0]]
        return f"has rows that do not sum to 1: row {row[0] if len(row) == 1 else row} sums to {sums[tuple(row)]:.4f}"

    return holds


def finite_gradient(*args: Any, mask: Any = None) -> Property:
    """The gradient with respect to the first argument is finite, and 0 where masked."""

    def holds(function: Function) -> str | None:
        shape = np.asarray(function(*args)).shape
        probe = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        try:
            gradient = jax.grad(lambda first: jnp.sum(function(first, *args[1:]) * probe))(jnp.asarray(args[0]))
        except (jax.errors.JAXTypeError, TypeError):
            return None  # not made of JAX's functions: right, but it cannot be differentiated
        gradient = np.asarray(gradient)
        if not np.isfinite(gradient).all():
            at = [int(i) for i in np.argwhere(~np.isfinite(gradient))[0]]
            return (
                f"has the right numbers, but a gradient of NaN at {at}, through the mask: jnp.where computes both of "
                "its branches, so keep −inf and 0 / 0 out of the one that is not taken"
            )
        if mask is not None and np.abs(np.where(mask, 0, gradient)).max() > 1e-6:
            at = [int(i) for i in np.argwhere(np.where(mask, 0, gradient))[0]]
            return f"has a gradient through the mask: the masked entry {at} changes the result"
        return None

    return holds


def differs(message: str, first: Callable[[Function], Any], second: Callable[[Function], Any]) -> Property:
    """Two results differ; the message says what it means if they are equal."""
    return lambda function: message if np.array_equal(np.asarray(first(function)), second(function)) else None


def agrees(message: str, first: Callable[[Function], Any], second: Callable[[Function], Any]) -> Property:
    """Two results are equal."""
    return lambda function: None if np.allclose(first(function), second(function), atol=1e-6) else message
