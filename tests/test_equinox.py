"""Equinox's layer, computed by our kernels over its own weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import draw

from jaxattn import equinox_attention, masks

eqx = pytest.importorskip("equinox", reason="compares with Equinox: install the extra equinox")

QUERY, KEY, VALUE = draw(0, (5, 6), (7, 3), (7, 4))
BIASES = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"qk_size": 5, "vo_size": 2, "output_size": 9, **BIASES}])
@pytest.mark.parametrize("mask", [None, (5, 7), (2, 5, 7)])
def test_outputs_and_gradients_are_equinoxs(options, mask):
    layer = eqx.nn.MultiheadAttention(2, 6, 3, 4, key=jax.random.key(1), **options)
    if mask is not None:
        mask = jax.random.bernoulli(jax.random.key(2), 0.6, mask).at[..., 0].set(True)

    def loss(arrays, run):
        output = run(*arrays)
        return (output**2).sum(), output

    ours = lambda layer, *x: equinox_attention(layer, *x, mask)  # noqa: E731
    theirs = lambda layer, *x: layer(*x, mask)  # noqa: E731
    arrays = layer, QUERY, KEY, VALUE
    grad = eqx.filter_value_and_grad(loss, has_aux=True)
    with jax.numpy_rank_promotion("allow"):
        came, expected = (grad(arrays, run) for run in (ours, theirs))
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(expected), strict=True):
        if eqx.is_array(a):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_masks_batches_dropout_and_rotated_heads():
    layer = eqx.nn.MultiheadAttention(2, 6, dropout_p=0.5, key=jax.random.key(1))
    x = jnp.stack([QUERY, -QUERY])
    run = lambda x, **options: equinox_attention(layer, x, x, x, masks.Causal(), **options)  # noqa: E731
    plain = jax.vmap(lambda x: run(x, inference=True))(x)
    np.testing.assert_allclose(
        plain[0], layer(QUERY, QUERY, QUERY, jnp.tril(jnp.ones((5, 5), bool)), inference=True), atol=1e-5
    )
    assert (run(QUERY, key=jax.random.key(0)) != plain[0]).any()
    doubled = run(QUERY, inference=True, process_heads=lambda q, k, v: (q, k, 2 * v))
    np.testing.assert_allclose(doubled, 2 * plain[0], atol=1e-5)
    with pytest.raises(ValueError, match=r"^key is missing, .*write key=jax"):
        run(QUERY)
    with pytest.raises(ValueError, match="must keep the shapes"):
        run(QUERY, inference=True, process_heads=lambda q, k, v: (q, k, v[:, :1]))
    with pytest.raises(TypeError, match="layer is int"):
        equinox_attention(3, QUERY, QUERY, QUERY)


@pytest.mark.parametrize("name", ["query", "key_", "value"])
def test_one_example_is_taken_at_a_time_and_a_batch_never_read_as_tokens(name):
    layer = eqx.nn.MultiheadAttention(2, 6, key=jax.random.key(1))
    arrays = {"query": QUERY, "key_": QUERY, "value": QUERY}
    # A batch of one token each would attend from example to example.
    for wrong in (QUERY[:, None], QUERY[None], QUERY[0], QUERY[:, :4]):
        with pytest.raises(ValueError, match=rf"{name} has shape .*, but must be \(tokens, 6\): write jax.vmap over"):
            equinox_attention(layer, **arrays | {name: wrong})
    with pytest.raises(ValueError, match="has shape"):
        equinox_attention(layer, *[QUERY[:, None]] * 3)
