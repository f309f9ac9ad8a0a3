import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn import (
    AttentionLayer,
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention,
    SimpleSelfAttention,
    assert_causal,
    masks,
)
from jaxattn.nnx import LatentAttention as NNXLatentAttention
from jaxattn.nnx import MultiHeadAttention as NNXMultiHeadAttention

X = jax.random.normal(jax.random.key(0), (2, 6, 3))


def test_its_parameters_are_linens_and_so_are_its_numbers():
    options = {"num_kv_heads": 1, "rotary_base": 100.0, "use_bias": True}
    layer = NNXMultiHeadAttention(2, 3, 4, **options, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    linen = AttentionLayer(2, 4, **options)
    chex.assert_trees_all_equal_shapes(params, linen.init(jax.random.key(0), X)["params"])
    chex.assert_trees_all_close(layer(X), linen.apply({"params": params}, X), atol=1e-6)
    chex.assert_trees_all_close(nnx.jit(lambda layer, x: layer(x))(layer, X), layer(X), atol=1e-6)
    came = nnx.grad(lambda layer: (layer(X) ** 2).sum())(layer)
    expected = jax.grad(lambda params: (linen.apply({"params": params}, X) ** 2).sum())(params)
    chex.assert_trees_all_close(nnx.to_pure_dict(came), expected, atol=1e-4)


def test_split_and_merge_give_the_same_layer():
    layer = NNXMultiHeadAttention(2, 3, 4, 0.1, rngs=nnx.Rngs(0))
    layer.eval()
    definition, state = nnx.split(layer)
    apply = jax.jit(lambda state, x: nnx.merge(definition, state)(x))
    chex.assert_trees_all_close(apply(state, X), layer(X), atol=1e-6)


def test_dropout_draws_from_rngs_and_train_and_eval_switch_it():
    layer = NNXMultiHeadAttention(2, 3, 4, 0.5, rngs=nnx.Rngs(0))
    step = nnx.jit(lambda layer, x: layer(x))
    assert (step(layer, X) != step(layer, X)).any()  # the stream moves on, under jit too
    layer.eval()
    chex.assert_trees_all_equal(step(layer, X), step(layer, X))
    chex.assert_trees_all_equal(layer(X), layer(X, deterministic=True))
    same = [layer(X, deterministic=False, rngs=nnx.Rngs(dropout=3)) for _ in range(2)]
    chex.assert_trees_all_equal(*same)
    assert (same[0] != layer(X)).any()
    linen = AttentionLayer(2, 4, 0.5)
    params = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    dropped = linen.apply({"params": params}, X, deterministic=False, dropout_key=nnx.Rngs(dropout=3).dropout())
    chex.assert_trees_all_close(same[0], dropped, atol=1e-6)


def test_vectors_of_another_width_are_named():
    layer = NNXMultiHeadAttention(2, 3, 4, mask=None, context_features=5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"query projects vectors of width 3, but these have 2: .*in_features=2"):
        layer(X[..., :2])
    with pytest.raises(ValueError, match=r"key projects vectors of width 5, but these have 3: .*context_features for"):
        layer(X, context=X)
    latent = NNXLatentAttention(2, 3, 4, 6, 4, 2, query_width=5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="query_down projects vectors of width 3, but these have 2"):
        latent(X[..., :2])


class Twins(nnx.Module):
    """Our layer beside Flax's own layers with dropout."""

    def __init__(self):
        self.ours = NNXMultiHeadAttention(2, 3, 4, 0.5, rngs=nnx.Rngs(0))
        self.theirs = nnx.MultiHeadAttention(
            2, 3, 4, dropout_rate=0.5, deterministic=False, decode=False, rngs=nnx.Rngs(0)
        )
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def drop(self):
        """Which of the layers drop entries."""
        return [bool((layer(X) != layer(X)).any()) for layer in (self.ours, self.theirs, self.dropout)]


SWITCHES = {
    "view": lambda module, off: nnx.view(module, deterministic=off),
    "with_attributes": lambda module, off: nnx.with_attributes(module, deterministic=off),
    "set_attributes": lambda module, off: module.set_attributes(deterministic=off) or module,
    "train and eval": lambda module, off: (module.eval() if off else module.train()) or module,
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_what_switches_dropout_in_flaxs_layers_switches_it_here(switch):
    module, switch = Twins(), SWITCHES[switch]
    assert module.drop() == [True] * 3
    switched = switch(module, True)
    assert switched.drop() == [False] * 3
    assert module.drop() == [switched is not module] * 3  # a view leaves the module as it was
    assert switch(switched, False).drop() == [True] * 3


def test_a_view_of_our_layer_alone_takes_the_arguments_of_flaxs_layers():
    layer = NNXMultiHeadAttention(2, 3, 4, 0.5, rngs=nnx.Rngs(0))
    chex.assert_trees_all_equal(nnx.view(layer, deterministic=True)(X), layer(X, deterministic=True))
    with pytest.raises(ValueError, match="use_running_average"):
        nnx.view(layer, use_running_average=True)
    assert "deterministic" in nnx.view_info(layer)


def test_a_dropout_rate_that_is_set_later_counts():
    layer = NNXMultiHeadAttention(2, 3, 4, rngs=nnx.Rngs(0))
    plain = layer(X)
    layer.set_attributes(dropout_rate=0.5)
    with pytest.raises(ValueError, match="made with dropout_rate=0"):
        layer(X)
    dropped = layer(X, rngs=nnx.Rngs(dropout=1))
    assert (dropped != plain).any()
    chex.assert_trees_all_equal(layer(X, rngs=nnx.Rngs(dropout=1).dropout), dropped)
    chex.assert_trees_all_equal(layer(X, rngs=nnx.Rngs(dropout=1).dropout()), dropped)


@pytest.mark.slow
def test_no_output_depends_on_a_later_input():
    layer = NNXMultiHeadAttention(2, 3, 4, rngs=nnx.Rngs(0))
    assert_causal(layer, X)
    hidden = layer(X, mask=masks.Lengths(jnp.array([2, 4])))
    np.testing.assert_allclose(hidden[0, :2], layer(X[:1, :2])[0], atol=1e-6)


@pytest.mark.parametrize(
    "mask",
    [masks.Causal() & masks.Segments(jnp.array([0, 0, 0, 1, 1, 1])), masks.SlidingWindow(2, np.array([0, 1]))],
)
def test_a_mask_with_arrays_can_be_a_field(mask):
    layer = NNXMultiHeadAttention(2, 3, 4, mask=mask, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    expected = AttentionLayer(2, 4, mask=mask).apply({"params": params}, X)
    np.testing.assert_allclose(nnx.jit(lambda layer, x: layer(x))(layer, X), expected, atol=1e-6)
    np.testing.assert_allclose(nnx.merge(*nnx.split(layer))(X), expected, atol=1e-6)


@pytest.mark.parametrize(
    "stage",
    [
        SimpleSelfAttention(),
        SelfAttention(4),
        CausalAttention(4, 0.1),
        MultiHeadAttentionWrapper(2, 2, 0.1),
        MultiHeadAttention(2, 4, 0.1),
    ],
    ids=lambda stage: type(stage).__name__,
)
def test_the_stages_cross_flaxs_bridge(stage):
    layer = nnx.bridge.ToNNX(stage, rngs=nnx.Rngs(0)).lazy_init(X)
    params = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    chex.assert_trees_all_close(layer(X), stage.apply({"params": params}, X), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NNXMultiHeadAttention(3, 3, 4, rngs=nnx.Rngs(0)), "features=4 is the total width of 3 heads"),
        (lambda: NNXMultiHeadAttention(2, 3, 4, num_kv_heads=3, rngs=nnx.Rngs(0)), "num_kv_heads=3"),
        (lambda: NNXMultiHeadAttention(2, 3, 4, 1.0, rngs=nnx.Rngs(0)), "dropout_rate=1.0"),
        (lambda: NNXMultiHeadAttention(2, 3, 4, rngs=nnx.Rngs(0))(X, positions=jnp.arange(6)), "rotary_base"),
        (lambda: NNXMultiHeadAttention(2, 3, 4, rngs=nnx.Rngs(0))(X[0, 0]), r"x has shape \(3,\)"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
