"""Every field of the layer, and pairs of fields: outputs, gradients and decoding equal float64 written out."""

import copy
import itertools

import jax
import jax.numpy as jnp
import layer_oracle
import numpy as np
import pytest
from cases import draw

from jaxattn import AttentionLayer, RelativeBias, Rotary, assert_causal, masks
from jaxattn.rotary import LinearScaling, Llama3Scaling, YarnScaling

T, WIDTH = 7, 6
NON_CAUSAL = {
    "no mask": {"mask": None},
    "two-sided": {"mask": masks.SlidingWindow(3, right=2)},
    "prefix": {"mask": masks.Causal() | masks.Prefix(2)},
}
FIELDS = NON_CAUSAL | {
    "use_bias": {"use_bias": True},
    "use_out_bias": {"use_out_bias": False},
    "num_kv_heads": {"num_kv_heads": 2},
    "one KV head": {"num_kv_heads": 1},
    "head_width": {"head_width": 6},
    "out_features": {"out_features": 5},
    "scale": {"scale": 0.3},
    "layer norm": {"normalize_heads": True},
    "rms": {"normalize_heads": "rms"},
    "rms_plus_one": {"normalize_heads": "rms_plus_one"},
    "norm_epsilon": {"normalize_heads": "rms", "norm_epsilon": 0.1},
    "rotary_base": {"rotary_base": 100.0},
    "partial rotary": {"rotary": Rotary(100.0, width=2)},
    "interleaved": {"rotary": Rotary(100.0, interleaved=True)},
    "linear": {"rotary": Rotary(100.0, scaling=LinearScaling(4.0))},
    "llama3": {"rotary": Rotary(100.0, scaling=Llama3Scaling(8.0, 1.0, 4.0, 20))},
    "yarn": {"rotary": Rotary(100.0, scaling=YarnScaling(4.0, 20, 2.0, 1.0))},
    "yarn, not truncated": {
        "rotary": Rotary(100.0, 4, True, YarnScaling(4.0, 20, 2.0, 0.5, attention_factor=1.3, truncate=False))
    },
    "soft_cap": {"soft_cap": 0.7},
    "sinks": {"use_sinks": True},
    "window": {"mask": masks.SlidingWindow(3)},
    "window with sinks": {"mask": masks.Causal() & (masks.SlidingWindow(2) | masks.Prefix(1))},
    "chunks": {"mask": masks.Causal() & masks.Chunked(3)},
    "rolling": {"mask": masks.SlidingWindow(3), "rolling_cache": True, "cache_length": None},
    "alibi": {"position_bias": "alibi"},
    "t5": {"position_bias": RelativeBias(6, 5)},
    "t5, both sides": {"position_bias": RelativeBias(8, 5, bidirectional=True)},
    "blockwise": {"implementation": "blockwise"},
    "dense": {"implementation": "dense"},
}


def fit(*names):
    """Whether fields can be given together."""
    fields = [FIELDS[name].keys() - {"cache_length"} for name in names]
    fields = [{"rotary" if field == "rotary_base" else field for field in each} for each in fields]
    return sum(map(len, fields)) == len(set().union(*fields))


PAIRS = [pair for pair in itertools.combinations(FIELDS, 2) if fit(*pair)]
np.random.default_rng(0).shuffle(PAIRS)


def made(names):
    """A layer with these fields, random parameters and random vectors."""
    fields = {"cache_length": T + 1}
    for name in names:
        fields |= FIELDS[name]
    layer, (x,) = AttentionLayer(4, 16, **fields), draw(0, (2, T, WIDTH))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape) / 2, jnp.float32), shapes)
    return layer, params, x


def check_output_and_gradients(layer, params, x):
    expected, rng = layer_oracle.output(layer, params, x), np.random.default_rng(2)
    weights = rng.standard_normal(expected.shape).astype(np.float32)

    def loss(params, x):
        output = layer.apply({"params": params}, x)
        return (output * weights).sum(), output

    (_, came), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
    np.testing.assert_allclose(came, expected, atol=1e-5 * max(1, np.abs(expected).max()))
    leaves, structure = jax.tree.flatten((params, x))
    directions = [rng.standard_normal(leaf.shape) for leaf in leaves]
    slopes = layer_oracle.slopes(
        lambda leaves: (layer_oracle.output(layer, *structure.unflatten(leaves)) * weights).sum(), leaves, directions
    )
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path((params, x))]
    for name, gradient, direction, slope in zip(names, jax.tree.leaves(gradients), directions, slopes, strict=True):
        terms = np.asarray(gradient, np.float64) * direction
        np.testing.assert_allclose(terms.sum(), slope, atol=3e-5 * np.abs(terms).sum() + 1e-5, err_msg=name)


def check_decoding(layer, params, x):
    expected = layer_oracle.output(layer, params, x)
    read = jax.jit(lambda cache, x: layer.apply({"params": params} | cache, x, decode=True, mutable=["cache"]))
    rows, cache = [], {}
    for start, end in ((0, 3), (3, 4), (4, 5), (5, 6), (6, 7)):
        row, cache = read(cache, x[:, start:end])
        rows.append(row)
    np.testing.assert_allclose(jnp.concatenate(rows, 1), expected, atol=1e-5 * max(1, np.abs(expected).max()))
    return read


def check_causal(layer, params, x):
    assert_causal(lambda x: layer.apply({"params": params}, x), x)
    read = lambda cache, x: layer.apply({"params": params} | cache, x, decode=True, mutable=["cache"])  # noqa: E731
    _, cache = read({}, x[:, :2])
    assert_causal(lambda x: read(cache, x)[0], x[:, 2:6])


def check(names):
    layer, params, x = made(names)
    check_output_and_gradients(layer, params, x)
    if not NON_CAUSAL.keys() & set(names):
        check_decoding(layer, params, x)
    return layer, params, x


MANY = [
    ("use_bias", "num_kv_heads", "head_width", "out_features", "rms_plus_one", "partial rotary", "soft_cap", "sinks",
     "t5"),
    ("rolling", "alibi", "yarn, not truncated", "scale", "use_out_bias", "layer norm"),
]  # fmt: skip


@pytest.mark.parametrize("names", MANY, ids=["growing cache", "rolling cache"])
def test_many_fields_together_equal_float64_written_out(names):
    check(names)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
def test_every_field_equals_float64_written_out_and_stays_causal(name):
    layer, params, x = check([name])
    if name not in NON_CAUSAL:
        check_causal(layer, params, x)


@pytest.mark.slow
@pytest.mark.parametrize("names", PAIRS[:40], ids=", ".join)
def test_pairs_of_fields_equal_float64_written_out(names):
    check(names)


@pytest.mark.parametrize("name", FIELDS)
def test_a_layer_is_a_static_argument_of_jit_whatever_its_fields(name):
    one, same = (AttentionLayer(4, 16, **fields) for fields in (FIELDS[name], copy.deepcopy(FIELDS[name])))
    assert (one, hash(one)) == (same, hash(same))


def test_fields_of_the_layer_are_all_here():
    given = {name for fields in FIELDS.values() for name in fields}
    elsewhere = {"dropout_rate", "dtype", "param_dtype", "precision", "kernel_init", "bias_init", "ring"}
    fields = (
        set(AttentionLayer.__dataclass_fields__)
        - {"num_heads", "features", "initializers", "parent", "name"}
        - elsewhere
    )
    assert fields == given
