"""NNX's layer under NNX's transformations, and axis names for every parameter."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import draw
from flax import nnx

from jaxattn import AttentionLayer, RelativeBias
from jaxattn.nnx import MultiHeadAttention

pytestmark = pytest.mark.slow

(X,) = draw(0, (2, 6, 8))
OPTIONS = {"rotary_base": 100.0, "normalize_heads": "rms", "use_sinks": True, "cache_length": 9}


@pytest.mark.slow
def test_remat_vmap_and_scan_change_no_number():
    layer = MultiHeadAttention(2, 8, 8, **OPTIONS, rngs=nnx.Rngs(0))
    expected = layer(X)
    loss = lambda layer: (layer(X) ** 2).sum()  # noqa: E731
    again = nnx.remat(loss)
    grads = nnx.grad(loss)(layer), nnx.grad(again)(layer)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *grads)
    mapped = nnx.vmap(lambda layer, x: layer(x), in_axes=(None, 0))(layer, X)
    np.testing.assert_allclose(mapped, expected, atol=1e-5)

    layer.init_cache(2)

    @nnx.scan(in_axes=(nnx.Carry, 1), out_axes=(nnx.Carry, 1))
    def decode(layer, x):
        return layer, layer(x[:, None], decode=True)[:, 0]

    _, rows = decode(layer, X)
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_layers_stacked_by_vmap_run_under_scan():
    make = nnx.vmap(lambda rngs: MultiHeadAttention(2, 8, 8, **OPTIONS, rngs=rngs), in_axes=0, out_axes=0)
    stack = make(nnx.Rngs(0).split(3))
    run = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    expected = X
    for number in range(3):
        graph, state = nnx.split(stack)
        expected = nnx.merge(graph, jax.tree.map(lambda leaf, n=number: leaf[n], state))(expected)
    np.testing.assert_allclose(run(X, stack), expected, atol=1e-5)


def test_every_parameter_can_have_axis_names():
    inward = ("query", "key", "value")
    axes = {f"{name}/kernel": ("embed", "heads") for name in inward} | {"out/kernel": ("heads", "embed")}
    axes |= {f"{name}/bias": ("heads",) for name in inward} | {"out/bias": ("embed",)}
    axes |= {"query_norm/scale": ("head",), "key_norm/scale": ("head",)}
    axes |= {"sinks": ("heads",), "relative_bias": (None, "heads")}
    options = OPTIONS | {"use_bias": True, "position_bias": RelativeBias(8)}
    ones = nn.initializers.ones_init()
    inits = {path: nn.with_logical_partitioning(ones, names) for path, names in axes.items()}
    layer = AttentionLayer(2, 8, initializers=inits, **options)
    specs = nn.get_partition_spec(layer.init(jax.random.key(0), X))["params"]
    assert {"/".join(key.key for key in path): tuple(spec) for path, spec in jax.tree.leaves_with_path(specs)} == axes
    inits = {path: nnx.with_partitioning(ones, names) for path, names in axes.items()}
    with jax.set_mesh(jax.make_mesh((1, 1, 1), ("embed", "heads", "head"), (jax.sharding.AxisType.Auto,) * 3)):
        layer = MultiHeadAttention(2, 8, 8, initializers=inits, **options, rngs=nnx.Rngs(0))
    found = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(layer, nnx.Param))}
    assert {path: leaf.get_metadata()["out_sharding"] for path, leaf in found.items()} == axes
    assert jnp.isfinite(layer(X)).all()
