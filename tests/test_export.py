"""Programs exported for any number of examples, for all platforms, run here."""

from importlib.util import find_spec

import chex
import jax
import jax.monitoring
import jax.numpy as jnp
import pytest
from cases import draw
from jax import export
from jax.experimental.compilation_cache import compilation_cache

from jaxattn import (
    AttentionLayer,
    CausalAttention,
    LatentAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    RelativeBias,
    Rotary,
    biases,
    dot_product_attention,
    masks,
)
from jaxattn.rotary import YarnScaling


def check_for_any_batch(run, *arrays):
    """Export with the first axis of every array left open, and compare."""
    scope = export.SymbolicScope()
    (batch,) = export.symbolic_shape("b", scope=scope)
    shapes = [jax.ShapeDtypeStruct((batch, *array.shape[1:]), array.dtype) for array in arrays]
    exported = export.export(jax.jit(run), platforms=("cpu", "cuda", "tpu"))(*shapes)
    if find_spec("flatbuffers"):  # without it JAX cannot serialize
        exported = export.deserialize(exported.serialize())
    for size in (3, 1):
        some = [array[:size] for array in arrays]
        chex.assert_trees_all_close(exported.call(*some), jax.jit(run)(*some), atol=1e-5)


X = draw(0, (3, 130, 2, 4))[0]
IDS, LENGTHS = jnp.arange(390).reshape(3, 130) // 50, jnp.array([3, 70, 130])
BATCHED = {
    "segments": (lambda ids: masks.Causal() & masks.Segments(ids), IDS),
    "lengths": (masks.Lengths, LENGTHS),
    "offsets": (masks.Causal, LENGTHS),
    "array": (lambda array: array, IDS[:, None, :, None] > IDS[:, None, None, :]),
}


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
@pytest.mark.parametrize("kind", BATCHED)
def test_batched_masks_are_exported_for_any_batch_with_gradients(kind, implementation):
    make_mask, array = BATCHED[kind]

    def run(x, array):
        attend = lambda x: dot_product_attention(x, x, x, make_mask(array), implementation=implementation)  # noqa: E731
        return jax.grad(lambda x: (attend(x) ** 2).sum())(x)

    check_for_any_batch(run, X, array)


def test_dropout_bias_and_a_mapped_value_are_exported_for_any_batch():
    def run(x):
        options = {"dropout_rate": 0.5, "dropout_key": jax.random.key(0), "implementation": "blockwise"}
        attend = lambda v: dot_product_attention(X[0], X[0], v, bias=jnp.ones((130, 130)), **options)  # noqa: E731
        return jax.vmap(attend)(x)

    check_for_any_batch(run, X)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
def test_soft_cap_sinks_biases_and_logsumexp_are_exported_for_any_batch_with_gradients(implementation):
    def run(x, offset, sinks, slopes, table):
        def loss(x, sinks, slopes, table):
            options = {"soft_cap": 2.0, "return_lse": True, "implementation": implementation}
            results = (
                dot_product_attention(x, x, x, masks.SlidingWindow(40, offset, right=9), **given, **options)
                for given in (
                    {"sinks": sinks, "bias": biases.Alibi(slopes, offset)},
                    {"bias": biases.Relative(table, offset=offset)},
                )
            )
            return sum(jnp.sin(context).sum() + jnp.cos(lse).sum() for context, lse in results)

        return jax.grad(loss, (0, 1, 2, 3))(x, sinks, slopes, table)

    others = draw(1, (2,), (2,), (8, 2))
    check_for_any_batch(lambda x, offset: run(x, offset, *others)[0], X, LENGTHS)
    (came, *of_others), (expected, *expected_others) = (
        jax.jit(jax.vmap(run, (0, 0, None, None, None)))(X, LENGTHS, *others),
        [jnp.stack(rows) for rows in zip(*(run(X[n], LENGTHS[n], *others) for n in range(3)), strict=True)],
    )
    chex.assert_trees_all_close((came, of_others), (expected, expected_others), atol=1e-4, rtol=1e-4)


ALL_FIELDS = {
    "use_bias": True, "num_kv_heads": 1, "rotary": Rotary(100.0, 4, True, YarnScaling(4.0, 64)), "soft_cap": 3.0,
    "normalize_heads": "rms_plus_one", "head_width": 6, "out_features": 5, "use_sinks": True,
    "mask": masks.SlidingWindow(4), "position_bias": RelativeBias(8, 20),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer",
    [
        AttentionLayer(2, 4, cache_length=12, **ALL_FIELDS),
        AttentionLayer(2, 4, rolling_cache=True, **ALL_FIELDS | {"position_bias": "alibi"}),
        LatentAttention(2, 4, latent_width=6, head_width=4, rotary_width=2, query_width=5, cache_length=12),
    ],
)
def test_layers_with_all_fields_are_exported_for_any_batch_with_gradients_and_decoding(layer):
    x = X[:, :9, 0]
    params = layer.init(jax.random.key(0), x)["params"]

    def decode(x):
        first, cache = layer.apply({"params": params}, x[:, :6], decode=True, mutable=["cache"])
        rest, _ = layer.apply({"params": params} | cache, x[:, 6:], decode=True, mutable=["cache"])
        return jnp.concatenate([first, rest], 1)

    check_for_any_batch(jax.grad(lambda x: jnp.sin(layer.apply({"params": params}, x)).sum()), x)
    check_for_any_batch(decode, x)


@pytest.mark.parametrize(
    "layer", [CausalAttention(4), MultiHeadAttentionWrapper(2, 4), MultiHeadAttention(2, 4), AttentionLayer(2, 4)]
)
def test_layers_are_exported_for_any_batch(layer):
    x = X[:, :9, 0]
    variables = layer.init(jax.random.key(0), x)
    check_for_any_batch(lambda x: layer.apply(variables, x), x)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
def test_the_persistent_compilation_cache_is_hit(implementation, tmp_path):
    events = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event.rpartition("/")[-1]))
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path))
        compilation_cache.reset_cache()
        counts = []
        for _ in range(2):
            jax.clear_caches()
            events.clear()
            # A new function each time, as in a new process.
            attend = lambda x: dot_product_attention(x, x, x, masks.Causal(), implementation=implementation)  # noqa: E731
            jax.block_until_ready(jax.jit(jax.grad(lambda x, f=attend: (f(x) ** 2).sum()))(X))
            counts.append((events.count("cache_hits"), events.count("cache_misses")))
        (_, first_misses), (hits, misses) = counts
        assert first_misses > 0
        assert hits == first_misses
        assert misses == 0
    finally:
        jax.monitoring.clear_event_listeners()
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
