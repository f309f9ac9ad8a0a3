"""The settings of JAX that users turn on: results and gradients stay the same under each.

Generation in these contexts is tested in `models/test_generation.py`.
"""

import contextlib

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import KERNELS, draw

from jaxattn import (
    AttentionLayer,
    CausalAttention,
    LatentAttention,
    RelativeBias,
    Rotary,
    attention_weights,
    biases,
    dot_product_attention,
    masks,
    renormalized_weights,
    ring_attention,
)
from jaxattn.rotary import YarnScaling

pytestmark = pytest.mark.slow  # every setting of JAX with every kernel


@contextlib.contextmanager
def setting(name, value):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


CONTEXTS = {
    "x64 flag": lambda: setting("jax_enable_x64", True),
    "x64 context": lambda: jax.enable_x64(True),
    "debug nans": lambda: jax.debug_nans(True),
    "debug infs": lambda: jax.debug_infs(True),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "disable jit": lambda: jax.disable_jit(),
    "leak checks": lambda: jax.checking_leaks(),
    "threefry": lambda: jax.threefry_partitionable(False),
    "default device": lambda: jax.default_device(jax.devices("cpu")[-1]),
    "device name": lambda: setting("jax_default_device", "cpu"),
}
X = draw(0, (2, 6, 8))[0]
IDS, LENGTHS = jnp.array([[0, 0, 1, 1, 1, 2]] * 2), jnp.array([0, 5])  # an example of padding alone


def of_kernel(attend):
    def run(x):
        heads = x.reshape(2, 6, 2, 4)
        # All kinds of masks; the first example may attend to nothing.
        mask = masks.Causal() & masks.Segments(IDS) & masks.Lengths(LENGTHS)
        mask &= masks.SlidingWindow(4) | (IDS == 0)[:, None, None, :]
        options = {"dropout_rate": 0.3, "dropout_key": jax.random.key(0)}
        return attend(heads, heads, heads, mask, **options)

    return run


def of_options(attend):
    def run(x):
        heads = x.reshape(2, 6, 2, 4)
        options = {"soft_cap": 2.0, "sinks": jnp.array([0.5, -1.0], x.dtype), "return_lse": True}
        alibi, table = biases.Alibi(jnp.array([0.1, 0.3], x.dtype)), jnp.arange(8, dtype=x.dtype).reshape(4, 2) / 8
        context, lse = attend(heads, heads, heads, masks.SlidingWindow(3, right=1), bias=alibi, **options)
        relative = attend(heads, heads, heads, masks.Causal() & masks.Lengths(LENGTHS), bias=biases.Relative(table))
        return jnp.concatenate([context, relative], -1) + jnp.swapaxes(lse, -1, -2)[..., None]

    return run


def of_layer(layer):
    variables = layer.init(jax.random.key(0), X)
    return lambda x: layer.apply(variables, x, deterministic=False, dropout_key=jax.random.key(1))


def of_weights(x):
    scores, mask = x @ jnp.swapaxes(x, -2, -1), masks.Causal(-1)
    return attention_weights(scores, mask) + renormalized_weights(scores, mask)


def of_ring(x):
    mesh = jax.make_mesh((1,), ("tokens",), devices=jax.devices("cpu")[-1:])
    heads = x.reshape(2, 6, 2, 4)
    return ring_attention(heads, heads, heads, masks.Causal(), mesh=mesh, axis="tokens", segment_ids=IDS)


FIELDS = {
    "rotary": Rotary(100.0, 2, True, YarnScaling(4.0, 64)), "soft_cap": 3.0, "normalize_heads": "rms_plus_one",
    "use_sinks": True, "mask": masks.SlidingWindow(4), "position_bias": RelativeBias(8, 20),
}  # fmt: skip
RUNS = {name: of_kernel(attend) for name, attend in KERNELS.items()} | {
    **{f"options, {name}": of_options(attend) for name, attend in KERNELS.items()},
    "layer, all fields": of_layer(AttentionLayer(2, 8, 0.3, **FIELDS)),
    "latent": of_layer(LatentAttention(2, 8, latent_width=6, head_width=4, rotary_width=2, dropout_rate=0.3)),
    "chosen": of_kernel(dot_product_attention),
    "weights": of_weights,
    "stage": of_layer(CausalAttention(4, 0.3)),
    "layer": of_layer(AttentionLayer(2, 8, 0.3, rotary_base=100.0, num_kv_heads=1)),
    "ring": of_ring,
}


def _squared(output):
    return (output**2).sum(), output


def with_gradient(run):
    """Return the output of `run`, and a gradient."""
    (_, output), gradient = jax.value_and_grad(lambda x: _squared(run(x)), has_aux=True)(X)
    return output, gradient


@pytest.fixture(scope="module")
def expected():
    """What each gives without settings."""
    return {name: with_gradient(run) for name, run in RUNS.items()}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("context", CONTEXTS)
def test_results_and_gradients_are_the_same_in_every_context(context, run, expected):
    with CONTEXTS[context]():
        came = with_gradient(RUNS[run])
    assert came[0].dtype == came[1].dtype == X.dtype
    if context != "threefry":  # which draws other numbers
        chex.assert_trees_all_close(came, expected[run], atol=2e-5)


@pytest.mark.parametrize("run", RUNS)
def test_nothing_is_nan_or_infinite_without_gradients_either(run):
    with jax.debug_nans(True), jax.debug_infs(True):
        chex.assert_tree_all_finite(RUNS[run](X))
