"""What is handed to cuDNN, and when; without an NVIDIA GPU, XLA computes what cuDNN is asked for."""

import dataclasses
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import KERNELS, draw, draw_heads, lowered, relative_error
from oracle import attend as attend64

from jaxattn import dot_product_attention, explain_implementation, masks
from jaxattn.kernels import cudnn, platforms, transforms
from jaxattn.kernels.call import checked_call


@pytest.fixture
def nvidia(monkeypatch):
    """Pretend that this process has a Hopper GPU, and let XLA compute what cuDNN is asked for."""
    calls, real = [], jax.nn.dot_product_attention

    def attend(query, key, value, *, implementation, **options):
        assert implementation == "cudnn"
        assert {array.dtype for array in (query, key, value)} <= {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)}
        calls.append(options)
        # A marker for programs that are lowered, not run.
        return real(query, key, value, implementation="xla", **options) + 0 * jnp.sin(query)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
    monkeypatch.setattr(cudnn, "cuda_capability", lambda: (9, 0))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # for XLA's, not ours
        yield calls


@pytest.fixture
def traced_again():
    """Trace what other tests have traced, here and after this test: the choice is made then."""
    jax.clear_caches()
    yield
    jax.clear_caches()


CUDNN_MASKS = {
    "none": None,
    "causal": masks.Causal(),
    "window": masks.SlidingWindow(5),
    "one key": masks.SlidingWindow(1),
    "lengths": masks.Lengths(jnp.array([[3, 0, 70], [64, 1, -2]])),
    "causal lengths": masks.Causal() & masks.Lengths(jnp.array([[3, 0, 70], [64, 1, 2]])),
    "lengths causal": masks.Lengths(jnp.array(17)) & masks.Causal(),
}


def on_cuda(*args, **options):
    return dataclasses.replace(checked_call(*args, **options), platform="cuda")


@pytest.mark.parametrize("kind", CUDNN_MASKS)
def test_what_cudnn_is_asked_for_is_what_dense_computes(nvidia, kind):
    query, key, value = draw_heads(0, (2, 3), 64, 64, H=4, K=2, D=8, D_v=8, dtype=jnp.bfloat16)
    one = on_cuda(query, key, value, CUDNN_MASKS[kind])
    assert cudnn.unsupported(one) is None
    assert transforms.choose(one) == "cudnn"
    context, lse = jax.jit(lambda one: cudnn.forward(one))(one)
    (gradient,) = draw(1, context.shape, dtype=jnp.bfloat16)
    gradients = jax.jit(lambda *arrays: cudnn.backward(*arrays))(one, context, lse, gradient)
    expected, vjp = jax.vjp(lambda *inputs: KERNELS["dense"](*inputs, CUDNN_MASKS[kind]), query, key, value)
    for came, right in zip((context, *gradients[:3]), (expected, *vjp(gradient)), strict=True):
        assert came.dtype == jnp.bfloat16
        chex.assert_trees_all_close(came.astype(jnp.float32), right.astype(jnp.float32), atol=0.06, rtol=0.01)
    assert relative_error(context, attend64(query, key, value, mask_array(kind))[0]) < 0.01


@pytest.mark.parametrize(
    ("kind", "is_causal", "window", "lengths"),
    [
        ("none", False, None, None),
        ("causal", True, None, None),
        ("window", True, (4, 0), None),
        ("one key", True, (0, 0), None),
        ("lengths", False, None, [3, 1, 64, 64, 1, 1]),  # at least one key, and no more than there are
        ("causal lengths", True, None, [3, 1, 64, 64, 1, 2]),
        ("lengths causal", True, None, [17] * 6),
    ],
)
def test_cudnn_gets_these_options(nvidia, kind, is_causal, window, lengths):
    query, key, value = draw_heads(0, (2, 3), 64, 64, H=4, K=2, D=16, D_v=16, dtype=jnp.bfloat16)
    with jax.disable_jit():
        cudnn.forward(on_cuda(query, key, value, CUDNN_MASKS[kind]))
    options = nvidia[-1]
    assert options["scale"] == 0.25
    assert options["is_causal"] == is_causal
    assert options["local_window_size"] == window
    keys = options["key_value_seq_lengths"]
    assert (None if keys is None else keys.tolist()) == lengths


def mask_array(kind):
    mask = CUDNN_MASKS[kind]
    return None if mask is None else mask.with_heads().array(64, 64)


def test_cudnn_gets_inputs_of_three_axes_under_vmap_and_a_scale_that_is_an_array(nvidia):
    query, key, value = draw_heads(0, (), 64, 64, H=4, K=2, D=8, D_v=8, dtype=jnp.bfloat16)
    queries = jnp.stack([query, -query, 2 * query])

    def run(query, scale):
        one = on_cuda(query, key, value, masks.Causal(), scale=scale)
        assert cudnn.unsupported(one) is None
        return transforms.map_as_batch(lambda one: cudnn.forward(one)[0], one)

    expected = KERNELS["dense"](queries, *[jnp.stack([x] * 3) for x in (key, value)], masks.Causal(), scale=0.5)
    for axis in (0, 1):
        moved = jnp.moveaxis(queries, 0, axis)
        came = jax.jit(jax.vmap(run, (axis, None)))(moved, jnp.float32(0.5))
        chex.assert_trees_all_close(came.astype(jnp.float32), expected.astype(jnp.float32), atol=0.03)
    assert nvidia[-1]["scale"] == 1.0


def test_the_cudnn_branch_is_lowered_for_cuda_and_nowhere_else(nvidia, traced_again):
    # Elsewhere small runs for 128 tokens, and blockwise for 4112.
    assert all("stablehlo.sine" in lowered("cuda", T, mask=masks.Causal()) for T in (128, 4112))
    for platform in ("tpu", "rocm", "cpu"):
        implementation = "blockwise" if platform == "cpu" else None
        assert "stablehlo.sine" not in lowered(platform, 128, mask=masks.Causal(), implementation=implementation)
    (x,) = draw(0, (1, 128, 1, 8), dtype=jnp.bfloat16)
    # Arrays on the CPU stay with its kernels.
    assert not explain_implementation(x, x, x).startswith("cudnn")
    chex.assert_trees_all_close(dot_product_attention(x, x, x), KERNELS["dense"](x, x, x), atol=0.02)


def test_without_a_gpu_in_this_process_exports_for_cuda_use_no_cudnn():
    program = lowered("cuda", 128, mask=masks.Causal())
    assert "custom_call" not in program


def refused_by(**changes):
    sizes = {"T": 64, "S": 64, "D": 16, "D_v": 16, "dtype": jnp.bfloat16} | {
        name: changes.pop(name) for name in ("T", "S", "D", "D_v", "dtype") if name in changes
    }
    query, key, value = draw_heads(0, H=2, K=2, **sizes)
    return cudnn.unsupported(on_cuda(query, key, value, **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"D": 256, "D_v": 256}, None),
        ({"D": 264, "D_v": 264}, "multiple of 8 up to 256"),
        ({"D": 12, "D_v": 12}, "multiple of 8"),
        ({"D_v": 8}, "one width"),
        ({"T": 63}, "gradients for even numbers of queries and keys only, not for 63 and 64"),
        ({"S": 1}, "even numbers"),
        ({"dtype": jnp.float32}, "float16 and bfloat16 only"),
        ({"return_weights": True}, "does not store the weights"),
        ({"dropout_rate": 0.1, "dropout_key": jax.random.key(0)}, "would drop other weights"),
        ({"bias": jnp.zeros((64, 64))}, "bias"),
        ({"mask": masks.Causal(1)}, "without an offset"),
        ({"mask": masks.Causal(jnp.array(0))}, "without an offset"),
        ({"mask": masks.Causal(), "S": 66}, "without an offset"),
        ({"mask": masks.Lengths(jnp.array([5, 6])), "S": 66}, None),
        ({"mask": masks.SlidingWindow(4) & masks.Lengths(jnp.array([5, 6]))}, "supports Causal"),
        ({"mask": masks.Causal() | masks.Lengths(jnp.array([5, 6]))}, "supports Causal"),
        ({"mask": masks.Causal() & masks.Segments(jnp.zeros(64, int))}, "supports Causal"),
        ({"mask": jnp.ones((64, 64), bool)}, "supports Causal"),
    ],
)
def test_cudnn_names_the_rule_that_a_call_breaks(nvidia, changes, words):
    reason = refused_by(**changes)
    assert reason is None if words is None else words in reason


def test_cudnn_depends_on_the_chip_and_on_what_jax_accepts(nvidia, monkeypatch):
    monkeypatch.setattr(cudnn, "cuda_capability", lambda: (8, 0))
    assert refused_by() is None
    assert "up to 128 on this GPU" in refused_by(D=136, D_v=136)
    monkeypatch.setattr(cudnn, "cuda_capability", lambda: (7, 5))
    assert "needs compute capability 8.0, and this GPU has 7.5" in refused_by()
    monkeypatch.setattr(cudnn, "cuda_capability", lambda: None)
    assert "only where there is an NVIDIA GPU" in refused_by()


def test_what_jax_refuses_is_not_chosen(monkeypatch):
    monkeypatch.setattr(cudnn, "cuda_capability", lambda: (9, 0))
    # On a CPU, JAX's own checks find no cuDNN.
    assert "is refused by JAX" in refused_by()


def test_the_lowest_capability_of_the_gpus_counts(monkeypatch):
    gpus = [SimpleNamespace(compute_capability=version) for version in ("9.0", "8.6", "10.0")]
    monkeypatch.setattr(jax, "local_devices", lambda backend: gpus)
    assert platforms.cuda_capability() == (8, 6)
    monkeypatch.undo()
    assert platforms.cuda_capability() is None
