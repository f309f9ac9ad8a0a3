import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import additive_scores


def case(T=3, S=4, n=5, batch=(2,), dtype=np.float32):
    random = np.random.default_rng(0)
    return tuple(random.normal(size=shape).astype(dtype) for shape in ((*batch, T, n), (*batch, S, n), (n,)))


@pytest.mark.parametrize("batch", [(), (2,), (2, 6)])
def test_additive_scores_agree_with_float64(batch):
    query, key, v = case(batch=batch)
    expected = np.zeros((*batch, 3, 4))
    for where in np.ndindex(expected.shape):
        *outer, t, s = where
        expected[where] = sum(
            np.float64(v[i]) * np.tanh(np.float64(query[(*outer, t, i)]) + np.float64(key[(*outer, s, i)]))
            for i in range(5)
        )
    np.testing.assert_allclose(additive_scores(query, key, v), expected, atol=2e-6)


def test_additive_scores_are_differentiable_and_bounded():
    query, key, v = (jnp.asarray(array) for array in case())
    bound = jnp.abs(v).sum()
    assert jnp.abs(additive_scores(100 * query, key, v)).max() <= bound * 1.00001
    grads = jax.grad(lambda *arrays: additive_scores(*arrays).sum(), (0, 1, 2))(query, key, v)
    assert all(jnp.isfinite(grad).all() and jnp.any(grad) for grad in grads)


def test_additive_scores_of_half_precision_are_float32():
    scores = additive_scores(*(jnp.asarray(array, jnp.bfloat16) for array in case()))
    assert scores.dtype == jnp.float32


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((3, 5), (4, 6), (5,)), "differ in their last axis.*same width"),
        (((3, 5), (4, 5), (4,)), r"v has shape \(4,\).*\(5,\)"),
        (((3, 5), (4, 5), (5, 1)), r"v has shape \(5, 1\)"),
        (((5,), (4, 5), (5,)), "query"),
        (((2, 3, 5), (3, 4, 5), (5,)), "query"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, words):
    with pytest.raises(ValueError, match=words):
        additive_scores(*(jnp.ones(shape) for shape in shapes))
