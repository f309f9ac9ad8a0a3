"""A test for users' own layers: does any output depend on a later input?"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxattn.checks import as_floating


def assert_causal(
    function: Callable[[Array], Any], x: Float[Array, "..."], *, axis: int = -2, tolerance: float = 0.0
) -> None:
    """Assert that no output of a function of token vectors depends on a later input.

    Two tests are made: the gradient of each output with respect to later inputs must be 0, and outputs must stay the
    same when later inputs are replaced by larger, smaller and huge ones. The second finds leaks that have no gradient,
    such as `x / stop_gradient(abs(x).max())` or `x + sign(x.sum())`.

    Args:
        function: from token vectors to one array with as many tokens on the same axis, such as a layer with its
            variables; with dropout, fix the key.
        x: random token vectors; where all are equal, a gradient can be 0 by chance.
        axis: the token axis, -2 for `(..., T, d)`.
        tolerance: by how much outputs may change, relative to the largest; 0 compares to the last bit.

    Raises:
        AssertionError: an output depends on a later input; the message says which on which.
        TypeError: `x` is not floating point, or the function returns several arrays, or none.
        ValueError: there is one token only, or the outputs are not as many as the inputs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import assert_causal, CausalAttention
        >>> layer, x = CausalAttention(features=2), jax.random.normal(jax.random.key(0), (6, 3))
        >>> variables = layer.init(jax.random.key(1), x)
        >>> assert_causal(lambda x: layer.apply(variables, x), x)
        >>> assert_causal(lambda x: jnp.flip(x, -2), x)
        Traceback (most recent call last):
        ...
        AssertionError: output 0 depends on the later input 5, with a gradient of 2: it is not masked

    References:
        Gradients as a test of which inputs matter: Luo et al. 2016, "Understanding the Effective Receptive Field".
    """
    x = as_floating("x", x)
    output = jax.eval_shape(function, x)
    if not hasattr(output, "shape"):
        raise TypeError(
            f"function returns a {type(output).__name__}, but must return one array: write lambda x: function(x)[0] "
            "for the first of several"
        )
    sizes = [shape[axis] if -len(shape) <= axis < len(shape) else 0 for shape in (x.shape, output.shape)]
    if sizes[0] < 2 or sizes[0] != sizes[1] or 0 in (*x.shape, *output.shape):
        raise ValueError(
            f"x has shape {x.shape} and the output {output.shape}: on axis {axis} both must have the same number of "
            "tokens, two or more, and no other axis may be empty; write axis=-2 for (..., T, d)"
        )
    _assert_no_gradient(function, x, axis)
    _assert_no_change(function, x, axis, tolerance)


def _assert_no_gradient(function: Callable[[Array], Any], x: Array, axis: int) -> None:
    T = x.shape[axis]
    output, vjp = jax.vjp(function, x)
    # Random directions, so that no two parts of an output cancel out.
    direction = jax.random.normal(jax.random.key(0), output.shape).astype(output.dtype)
    one_output = jnp.eye(T, dtype=output.dtype).reshape(
        T, *(T if i == axis % output.ndim else 1 for i in range(output.ndim))
    )
    (gradients,) = jax.vmap(lambda chosen: vjp(chosen * direction))(one_output)
    # (T outputs, ..., T inputs, ...) -> (T outputs, T inputs)
    largest = jnp.abs(jnp.moveaxis(gradients, axis % x.ndim + 1, 1)).reshape(T, T, -1).max(-1)
    later = jnp.triu(jnp.where(jnp.isnan(largest), jnp.inf, largest), k=1)
    t, s = divmod(int(later.argmax()), T)
    if later[t, s] > 0:
        raise AssertionError(
            f"output {t} depends on the later input {s}, with a gradient of {float(largest[t, s]):.2g}: "
            "it is not masked"
        )


def _assert_no_change(function: Callable[[Array], Any], x: Array, axis: int, tolerance: float) -> None:
    """Replace all inputs from each position on, and compare the outputs before it."""
    T = x.shape[axis]
    run = jax.jit(function)  # one program for all inputs, so that equal inputs give equal bits
    expected = np.moveaxis(np.asarray(run(x)), axis, 0)
    allowed = tolerance * float(np.abs(expected).max(initial=0))
    noise = jax.random.normal(jax.random.key(1), x.shape).astype(x.dtype)
    huge = float(jnp.finfo(x.dtype).max) ** 0.25
    others = {"noise": noise, "their opposite": -x, "zeros": jnp.zeros_like(x), "huge numbers": noise * huge}
    token = jnp.arange(T).reshape(-1, *(1,) * (x.ndim - axis % x.ndim - 1))
    # Sixteen places to cut at find what all would, unless the function treats a few tokens alone.
    for s in sorted({1 + (T - 2) * place // 15 for place in range(16)}):
        for name, other in others.items():
            came = np.moveaxis(np.asarray(run(jnp.where(token >= s, other, x))), axis, 0)
            same = np.isclose(came[:s], expected[:s], rtol=0, atol=allowed, equal_nan=True).reshape(s, -1).all(-1)
            if not same.all():
                raise AssertionError(
                    f"output {int(same.argmin())} depends on later inputs, although its gradient there is 0: it "
                    f"changes when the inputs from {s} on are replaced by {name}"
                )
