import functools

import chex
import flax.linen as nn
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
)
from jaxattn.models.convert import from_book, from_linen, from_torch, to_book, to_linen, to_torch

X = jax.random.normal(jax.random.key(0), (2, 6, 4))


def output_and_gradient(apply, x):
    """The output, and the input's gradient for a fixed random gradient of the output."""
    output, vjp = jax.vjp(apply, x)
    return output, vjp(jax.random.normal(jax.random.key(7), output.shape))[0]


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize(
    "module",
    [SelfAttention, CausalAttention, lambda *a, **k: MultiHeadAttentionWrapper(2, *a, **k),
     lambda *a, **k: MultiHeadAttention(2, *a, **k)],
)  # fmt: skip
def test_converting_to_the_books_names_and_back_changes_nothing(module, use_bias):
    params = module(6, use_bias=use_bias).init(jax.random.key(1), X)["params"]
    chex.assert_trees_all_equal(from_book(to_book(params)), params)


def test_the_bare_matrices_of_the_books_first_class_are_read():
    params = SelfAttention(2).init(jax.random.key(1), X)["params"]
    bare = {f"W_{name}": np.asarray(dense["kernel"]) for name, dense in params.items()}
    chex.assert_trees_all_equal(from_book(bare), params)


def test_torch_tensors_are_read_and_the_causal_mask_is_ignored():
    torch = pytest.importorskip("torch", reason="the book's classes are PyTorch's: install the extra torch")
    linear = torch.nn.Linear(3, 2, bias=False)
    state = {f"W_{name}.weight": linear.weight for name in ("query", "key", "value")} | {"mask": torch.ones(6, 6)}
    kernel = from_book(state)["key"]["kernel"]
    np.testing.assert_array_equal(kernel, linear.weight.detach().numpy().T)


def test_torch_tensors_in_bfloat16_stay_so_and_quantized_ones_are_refused_by_name():
    torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra torch")
    attention = torch.nn.MultiheadAttention(8, 2).state_dict()
    book = {f"W_{name}.weight": torch.nn.Linear(4, 8).weight for name in ("query", "key", "value")}
    for convert, back, state in ((from_torch, to_torch, attention), (from_book, to_book, book)):
        half = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
        params = convert(half)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
        for name, array in back(params).items():
            np.testing.assert_array_equal(array.astype(np.float32), half[name].detach().float().numpy())
        name = next(iter(state))
        for dtype in (torch.float8_e4m3fn, torch.int8):
            with pytest.raises(ValueError, match=f"{name} has type {str(dtype).removeprefix('torch.')}"):
                convert({**state, name: state[name].detach().to(dtype)})


@pytest.mark.parametrize("options", [{}, {"normalize_qk": True}, {"use_bias": False}])
def test_linens_layer_computes_the_same_with_converted_parameters_and_back(options):
    theirs = nn.MultiHeadDotProductAttention(2, qkv_features=8, out_features=8, **options)
    variables = theirs.init(jax.random.key(1), X)
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
    normalize = "normalize_qk" in options
    ours = AttentionLayer(2, 8, use_bias=options.get("use_bias", True), mask=None, normalize_heads=normalize)
    params = from_linen(variables["params"])
    actual, expected = (
        output_and_gradient(functools.partial(layer.apply, {"params": weights}), X)
        for layer, weights in ((ours, params), (theirs, variables["params"]))
    )
    chex.assert_trees_all_close(actual, expected, atol=1e-5)
    back = to_linen(params, 2)
    if not options.get("use_bias", True):
        del back["out"]["bias"]
    chex.assert_trees_all_equal(back, variables["params"])


def test_nnxs_layer_computes_the_same_with_converted_parameters_and_back():
    theirs = nnx.MultiHeadAttention(4, 4, qkv_features=8, out_features=8, decode=False, rngs=nnx.Rngs(0))
    state = nnx.to_pure_dict(nnx.state(theirs, nnx.Param))
    params = from_linen(state)
    ours = AttentionLayer(4, 8, use_bias=True, mask=None)
    actual = output_and_gradient(functools.partial(ours.apply, {"params": params}), X)
    chex.assert_trees_all_close(actual, output_and_gradient(theirs, X), atol=1e-5)
    chex.assert_trees_all_equal(to_linen(params, 4), state)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widths", [{}, {"kdim": 3, "vdim": 5}])
def test_torchs_layer_computes_the_same_with_converted_parameters_and_back(bias, widths):
    torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra torch")
    theirs = torch.nn.MultiheadAttention(8, 2, bias=bias, batch_first=True, **widths)
    x = torch.randn(2, 6, 8)
    params = from_torch(theirs.state_dict())
    if not widths:
        ours = AttentionLayer(2, 8, use_bias=bias, mask=None)
        actual, gradient = output_and_gradient(
            functools.partial(ours.apply, {"params": params}), jnp.asarray(x.numpy())
        )
        x.requires_grad_()
        expected = theirs(x, x, x, need_weights=False)[0]
        expected.backward(torch.from_numpy(np.array(jax.random.normal(jax.random.key(7), actual.shape))))
        np.testing.assert_allclose(actual, expected.detach().numpy(), atol=1e-5)
        np.testing.assert_allclose(gradient, x.grad.numpy(), atol=1e-5)
    back = to_torch(params)
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(back[name], tensor.numpy())


def init(module):
    return module.init(jax.random.key(1), X)["params"]


def linen_params(dtype):
    return {name: {"kernel": np.ones((4, 2, 2), dtype)} for name in ("query", "key", "value", "out")}


def with_query(**leaves):
    params = init(MultiHeadAttention(2, 6))
    return params | {"query": params["query"] | leaves}


@pytest.mark.parametrize("biased", [("query", "value", "out"), ("key",), ("out",), ()])
def test_a_bias_that_is_missing_is_zeros_for_torch_and_none_is_lost(biased):
    torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra torch")
    layer = AttentionLayer(2, 4, use_bias=True, mask=None)
    params = init(layer)
    rng = np.random.default_rng(0)
    for name in params:
        bias = rng.standard_normal(4) if name in biased else np.zeros(4)
        params[name]["bias"] = jnp.asarray(bias, jnp.float32)
    state = to_torch({name: params[name] if name in biased else {"kernel": params[name]["kernel"]} for name in params})
    theirs = torch.nn.MultiheadAttention(4, 2, bias=bool(biased), batch_first=True)
    # Without biases of the projections, PyTorch's own are zeros at first.
    left = theirs.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()}, strict=False)
    assert set(left.missing_keys) <= {"in_proj_bias"}
    x = torch.randn(2, 6, 4)
    expected = theirs(x, x, x, need_weights=False)[0].detach().numpy()
    np.testing.assert_allclose(layer.apply({"params": params}, x.numpy()), expected, atol=1e-6)


@pytest.mark.parametrize("convert", [to_torch, to_book])
def test_what_is_written_into_converted_parameters_leaves_ours_as_they_were(convert):
    params = init(MultiHeadAttention(2, 6, use_bias=True))
    before = jax.tree.map(np.array, params)
    for array in convert(params).values():
        array += 1
    chex.assert_trees_all_equal(params, before)


def book_state():
    return to_book(init(MultiHeadAttention(2, 6)))


@pytest.mark.parametrize(
    ("convert", "words"),
    [
        (lambda: from_book({}), "W_query.weight is missing"),
        (lambda: from_book({k: v for k, v in book_state().items() if k != "W_key.weight"}), "W_key.weight is missing"),
        (lambda: from_book(book_state() | {"surplus": np.ones(3)}), "surplus has no counterpart"),
        (lambda: from_book(book_state() | {"W_value.weight": np.ones((5, 4))}), r"W_value.weight has shape \(5, 4\)"),
        (lambda: from_torch({"in_proj_weight": np.ones((5, 4))}), "in_proj_weight has shape"),
        (lambda: from_torch({"in_proj_weight": np.ones((12, 4))}), "out_proj.weight is missing"),
        (lambda: from_linen({"query": {"kernel": np.ones((4, 8))}}), "key is missing"),
        (lambda: from_linen(linen_params(np.int8)), "query/kernel has type int8"),
        (lambda: to_linen({"surplus": {}}, 2), "query is missing"),
        (
            lambda: to_torch(AttentionLayer(2, 4, num_kv_heads=1).init(jax.random.key(0), X)["params"]),
            "as many KV heads",
        ),
        (lambda: from_linen(linen_params(np.float32) | {"out": {}}), "out/kernel is missing; there are none"),
        (lambda: from_linen(linen_params(np.float32) | {"query_ln": np.ones(2)}), "query_ln/scale is missing"),
        (lambda: to_linen(with_query(scale=np.ones(4)), 2), "query/scale has no counterpart"),
        (lambda: to_torch(with_query(lora=np.ones(4))), "query/lora has no counterpart"),
        (lambda: to_book(with_query(lora=np.ones(4))), "query/lora has no counterpart"),
        (lambda: to_book({name: {} for name in ("query", "key", "value")}), "query/kernel is missing"),
        (lambda: to_torch({name: {} for name in ("query", "key", "value", "out")}), "query/kernel is missing"),
        (lambda: to_linen(MultiHeadAttention(2, 6).init(jax.random.key(0), X)["params"], 4), "num_heads=4"),
    ],
)
def test_missing_unknown_and_misshapen_parameters_are_named(convert, words):
    with pytest.raises(ValueError, match=words):
        convert()
