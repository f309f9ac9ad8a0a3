"""What the C++ kernel adds to `test_kernels.py`: wide shapes, its blocks and splits, and where JAX may run it."""

import functools
import importlib.util
import operator
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import MASKS, draw, draw_heads, draw_mask, kept_factors, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxattn import dot_product_attention, explain_implementation, masks
from jaxattn.kernels import native
from jaxattn.kernels.call import checked_call
from jaxattn.kernels.native import library, mask_code

attend = functools.partial(dot_product_attention, implementation="native")
dense = functools.partial(dot_product_attention, implementation="dense")
needs_library = pytest.mark.skipif(library.missing() is not None, reason=f"the library {library.missing()}")


def random_call(seed, H=2, K=1, D=16, D_v=16, T=300, S=300, batch=(), kind="causal", dtype=jnp.float32):
    query, key, value = draw_heads(seed, batch=batch, T=T, S=S, H=H, K=K, D=D, D_v=D_v, dtype=dtype)
    (gradient,) = draw(seed + 1, (*batch, T, H, D_v), dtype=dtype)
    return query, key, value, gradient, draw_mask(kind, batch, T, S, H, seed)


def mask_of_heads(mask, T, S):
    return mask.with_heads().array(T, S) if isinstance(mask, masks.Mask) else mask


@pytest.mark.slow
@needs_library
@settings(max_examples=20)
@given(
    sizes=st.sampled_from([(1, 700), (3, 300), (300, 300), (131, 257), (257, 64), (400, 1)]),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 1)]),
    widths=st.sampled_from([(64, 64), (16, 48), (1, 1), (80, 7), (33, 128), (256, 3)]),
    kind=st.sampled_from(MASKS),
    bias=st.sampled_from([None, (1, 1, 1), (0, 1, 1), (1, 1, 0), (0, 0, 0), (1, 0, 0)]),
    rate=st.sampled_from([0.0, 0.3]),
    dtype=st.sampled_from([jnp.float32, jnp.float32, jnp.bfloat16, jnp.float16]),
    seed=st.integers(0, 2**31 - 1),
)
def test_all_widths_blocks_and_types_equal_float64(sizes, heads, widths, kind, bias, rate, dtype, seed):
    (T, S), (H, K), (D, D_v) = sizes, heads, widths
    query, key, value, gradient, mask = random_call(seed, H, K, D, D_v, T, S, kind=kind, dtype=dtype)
    if bias is not None:
        (bias,) = draw(seed + 2, tuple(1 if one else n for one, n in zip(bias, (H, T, S), strict=True)))
    options = {"dropout_rate": rate, "dropout_key": jax.random.key(seed) if rate else None}
    factors = kept_factors((), H, T, S, rate, options["dropout_key"]) if rate else None

    def run(query, key, value, bias):
        return attend(query, key, value, mask, bias=bias, **options)

    context, vjp = jax.vjp(run, query, key, value, bias)
    *came, came_bias = vjp(gradient)
    oracle_options = {"mask": mask_of_heads(mask, T, S), "bias": bias, "factors": factors}
    expected = oracle.attend(query, key, value, **oracle_options)[0]
    *expected_gradients, of_scores = oracle.gradients(query, key, value, gradient, **oracle_options)
    tolerance = max(4e-6, 2 * float(jnp.finfo(dtype).eps))
    assert context.dtype == dtype
    assert relative_error(context, expected) < tolerance
    scale = max(np.abs(array).max(initial=0) for array in (*expected_gradients, np.asarray(gradient, np.float64)))
    for array, array64 in zip(came, expected_gradients, strict=True):
        assert array.dtype == dtype
        assert np.abs(np.asarray(array, np.float64) - array64).max(initial=0) < tolerance * max(scale, 1)
    if bias is not None:
        axes = tuple(i for i in range(3) if bias.shape[i] == 1)
        error = np.abs(came_bias - of_scores.sum(axes).reshape(bias.shape)).max()
        assert error < tolerance * max(np.abs(of_scores).sum(axes).max(), scale)


@needs_library
def test_a_rate_that_drops_nothing_changes_nothing():
    query, key, value, _, mask = random_call(0)
    came = attend(query, key, value, mask, dropout_rate=1e-12, dropout_key=jax.random.key(0))
    chex.assert_trees_all_close(came, dense(query, key, value, mask), atol=1e-5)


@needs_library
@pytest.mark.parametrize("T", [1, 4, 300])
def test_not_a_number_and_infinity_spread_as_in_dense(T):
    query, key, value, _, mask = random_call(0, T=T, kind="causal")
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        for arrays in ((query.at[0, 0, 3].set(bad), key, value), (query, key, value.at[2, 0, 5].set(bad))):
            came, expected = attend(*arrays, mask), dense(*arrays, mask)
            chex.assert_trees_all_close(jnp.isnan(came), jnp.isnan(expected))


@needs_library
@pytest.mark.parametrize("T", [2, 300])
def test_no_other_example_head_or_later_key_changes_a_bit(T):
    query, key, value, gradient, mask = random_call(0, H=4, K=2, T=T, batch=(3,), kind="causal")

    @jax.jit
    def run(query, key, value, gradient):
        context, vjp = jax.vjp(lambda *heads: attend(*heads, mask), query, key, value)
        return context, *vjp(gradient)

    context, of_query, of_key, of_value = run(query, key, value, gradient)
    arrays = [array.at[1].set(1e30) for array in (query, key, value, gradient)]
    for came, expected in zip(run(*arrays), (context, of_query, of_key, of_value), strict=True):
        assert (came[0] == expected[0]).all()
        assert (came[2] == expected[2]).all()
    arrays = [
        array.at[..., -2:, :].set(-1e30) if array.shape[-2] == 4 else array.at[..., -1:, :].set(7.0)
        for array in (query, key, value, gradient)
    ]
    for came, expected in zip(run(*arrays), (context, of_query, of_key, of_value), strict=True):
        half = expected.shape[-2] // 2
        assert (came[..., :half, :] == expected[..., :half, :]).all()
    later = attend(query, key.at[:, 299:].set(1e30), value.at[:, 299:].set(-1e30), mask)
    assert (later[:, :-1] == context[:, :-1]).all()


@needs_library
def test_vmap_copies_no_array_that_is_not_mapped():
    query, key, value, _, _ = random_call(0, H=4, K=2, T=64, S=64, batch=(16,))
    (bias,) = draw(3, (4, 64, 64))

    run = jax.vmap(lambda query, key, value: attend(query, key, value, bias=bias), in_axes=(0, None, None))
    text = jax.jit(run).lower(query, key[0], value[0]).as_text()
    assert "tensor<16x4x64x64xf32>" not in text
    assert "tensor<16x64x2x16xf32>" not in text
    expected = dense(query, *(jnp.broadcast_to(array[:1], array.shape) for array in (key, value)), bias=bias)
    chex.assert_trees_all_close(run(query, key[0], value[0]), expected, atol=1e-5)
    of_bias = jax.grad(lambda bias: (attend(query, key, value, bias=bias) ** 2).sum())(bias)
    expected = jax.grad(lambda bias: (dense(query, key, value, bias=bias) ** 2).sum())(bias)
    chex.assert_trees_all_close(of_bias, expected, atol=1e-4)


@needs_library
def test_the_gradient_of_an_unused_bias_is_not_computed():
    query, key, value, _, _ = random_call(0)
    bias = jnp.zeros((2, 300, 300))
    loss = lambda query, bias: attend(query, key, value, bias=bias).sum()  # noqa: E731
    assert "jaxattn_bias_gradient" not in jax.jit(jax.grad(loss)).lower(query, bias).compile().as_text()
    assert "jaxattn_bias_gradient" in jax.jit(jax.grad(loss, 1)).lower(query, bias).compile().as_text()


@needs_library
def test_ids_of_64_bits_are_compared_whole():
    with jax.enable_x64(True):
        query, key, value = draw(0, *[(300, 2, 16)] * 3)
        # The second differs from the first in the high half alone, and the third from the second in the low half.
        ids = jnp.repeat(jnp.array([1, 1 + 2**32, 2 + 2**32]), 100)
        positions = masks.Lengths(jnp.asarray(2**40)), masks.Causal(jnp.asarray(-(2**40))), masks.SlidingWindow(2**70)
        for mask in (masks.Segments(ids), *positions):
            chex.assert_trees_all_close(attend(query, key, value, mask), dense(query, key, value, mask), atol=1e-5)


@needs_library
@pytest.mark.parametrize("kind", [masks.Causal, masks.Lengths, masks.Prefix, masks.SlidingWindow, masks.Chunked])
def test_every_mask_by_position_takes_a_number_for_each_example(kind):
    query, key, value = draw_heads(0, (3,), T=70, S=90, H=2, K=1)
    numbers = jnp.array([-20, 3, 37])
    mask = kind(20, numbers) if kind in (masks.SlidingWindow, masks.Chunked) else kind(numbers)
    mask = mask | masks.SlidingWindow(2)  # behind the first array
    chex.assert_trees_all_close(attend(query, key, value, mask), dense(query, key, value, mask), atol=1e-5)


@needs_library
def test_other_platforms_get_a_portable_kernel():
    query, key, value, _, mask = random_call(0)
    exported = jax.export.export(
        jax.jit(lambda *heads: dot_product_attention(*heads, mask)), platforms=["cuda", "tpu"]
    )(query, key, value)
    assert "jaxattn_forward" not in exported.mlir_module()


@needs_library
@pytest.mark.parametrize("types", [AxisType.Auto, AxisType.Explicit])
def test_inside_shard_map_over_all_axes_the_native_kernel_runs(types):
    query, key, value, _, mask = random_call(0, batch=(2,))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(types,))
    with jax.set_mesh(mesh):
        heads = [jax.device_put(array, NamedSharding(mesh, PartitionSpec("data"))) for array in (query, key, value)]
        run = jax.jit(
            jax.shard_map(
                lambda *heads: dot_product_attention(*heads, mask),
                out_specs=PartitionSpec("data"),
                in_specs=(PartitionSpec("data"),) * 3,
                mesh=mesh,
            )
        )
        assert "jaxattn_forward" in run.lower(*heads).as_text()
        gradient = jax.jit(jax.grad(lambda *heads: run(*heads).sum()))(*heads)
    expected = jax.grad(lambda *heads: dense(*heads, mask).sum())(query, key, value)
    chex.assert_trees_all_close(np.asarray(gradient), np.asarray(expected), atol=1e-5)


def test_without_the_library_another_kernel_runs_and_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(library, "missing", lambda: "was not compiled when jaxattn was installed")
    heads = jnp.ones((1, 2048, 8, 64))
    first, *others = explain_implementation(heads, heads, heads, masks.Causal()).splitlines()
    assert first.startswith("blockwise runs")
    assert any(line.startswith("native does not: was not compiled") for line in others)
    with pytest.raises(ValueError, match="implementation='native' was not compiled"):
        attend(heads, heads, heads)


def test_the_library_is_used_if_it_was_compiled():
    is_compiled = importlib.util.find_spec("jaxattn.kernels.native._attention") is not None
    assert (library.missing() is None) == (library.instruction_set() is not None) == is_compiled


def test_a_library_that_does_not_load_is_missing_and_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(library, "_load", library._load.__wrapped__)  # without what it has loaded

    def missing(found, error=None):
        def load(path):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", lambda name: found)
            patch.setattr(library.ctypes, "CDLL", load)
            assert library.instruction_set() is None
            return library.missing()

    assert "was not compiled" in missing(None)
    assert "was not compiled" in missing(SimpleNamespace(origin=None))
    for error in (OSError("wrong ELF class"), AttributeError("no symbol"), RuntimeError("twice"), ValueError("twice")):
        assert f"could not be loaded ({error}): reinstall" in missing(SimpleNamespace(origin="_attention.so"), error)


@needs_library
def test_up_to_eight_batch_axes_are_supported():
    eight, nine = (checked_call(*[jnp.ones((1,) * axes + (3, 1, 4))] * 3) for axes in (8, 9))
    assert native.unsupported(eight) is None
    assert "takes up to 8 batch axes, not 9" in native.unsupported(nine)


@needs_library
def test_what_the_kernel_does_not_support_is_said():
    heads = jnp.ones((1, 200, 8, 64))
    eight, nine = (functools.reduce(operator.and_, [masks.Causal()] * count) for count in (8, 9))
    assert explain_implementation(heads, heads, heads, eight).startswith("native runs")
    assert "masks of up to 8 parts, not 9" in explain_implementation(heads, heads, heads, nine)
    assert mask_code.unsupported(masks.Mask()) == "does not know the mask Mask"
    with jax.enable_x64(True):
        wide = jnp.ones((1, 200, 8, 64), jnp.float64)
        assert "computes in float32, not float64" in explain_implementation(wide, wide, wide)
    with pytest.raises(ValueError, match="return_weights"):
        attend(heads, heads, heads, return_weights=True)
