"""Which kernel runs where, tested by lowering for platforms that are not here."""

import dataclasses
import re
from importlib.util import find_spec
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import KERNELS, draw, lowered, relative_error
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxattn import dot_product_attention, explain_implementation, masks
from jaxattn.kernels import blocks, blockwise, call, choice, platforms, small
from jaxattn.kernels.call import checked_call


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_off_the_cpu_dense_runs_while_its_scores_fit_in_memory_and_blockwise_beyond(platform):
    fits, exceeds = (lowered(platform, T, mask=masks.Causal()) for T in (4096, 4112))  # 2 · 8 · 4096² · 4 bytes = 1 GiB
    assert "stablehlo.while" not in fits
    assert "x4096x4096xf32>" in fits
    assert "stablehlo.while" in exceeds
    assert "4112x4112" not in exceeds


def test_blocks_multiply_in_the_type_of_the_input_and_sum_in_float32_on_accelerators():
    query, key = (jax.ShapeDtypeStruct((2, 256, 4, 64), jnp.bfloat16) for _ in range(2))
    attend = lambda q, k: dot_product_attention(q, k, k, implementation="blockwise").astype(jnp.float32)  # noqa: E731
    gradient = jax.jit(jax.grad(lambda *inputs: (attend(*inputs) ** 2).sum(), (0, 1)))
    program = export.export(gradient, platforms=["tpu"])(query, key).mlir_module()
    tensor = r"tensor<[0-9x]*x(\w+?)>"
    products = re.findall(rf"stablehlo.dot_general .* : \({tensor}, {tensor}\) -> {tensor}", program)
    products = [tuple(shape.rpartition("x")[2] for shape in shapes) for shapes in products]
    assert products.count(("bf16", "bf16", "f32")) == 7
    assert {types for types in products if "bf16" in types} == {("bf16", "bf16", "f32")}


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_what_accelerators_compute_is_as_accurate_as_dense(dtype):
    query, key, value, gradient = draw(0, *[(2, 300, 2, 16)] * 4, dtype=dtype)
    errors = {}
    for name, kernel in (("blockwise", blockwise), ("small", small)):
        one = dataclasses.replace(checked_call(query, key, value, masks.Causal()), platform="tpu")
        context, lse = jax.jit(kernel.forward)(one)
        gradients = jax.jit(kernel.backward)(one, context, lse, gradient)
        inputs = [array.astype(jnp.float32) for array in (query, key, value)]
        expected, vjp = jax.vjp(lambda *inputs: KERNELS["dense"](*inputs, masks.Causal()), *inputs)
        expected = (expected, *vjp(gradient.astype(jnp.float32)))
        came = (context, *gradients[:3])
        errors[name] = [relative_error(a, np.asarray(b)) for a, b in zip(came, expected, strict=True)]
    eps = float(jnp.finfo(dtype).eps)
    assert all(error < 1.1 * max(small, eps / 2) for error, small in zip(*errors.values(), strict=True)), errors


def test_no_whole_array_is_converted_to_float32():
    (query,) = draw(0, (2, 300, 2, 16), dtype=jnp.bfloat16)
    one = checked_call(query, query, query, masks.Causal())
    for platform in ("cpu", "tpu"):
        program = str(jax.make_jaxpr(blockwise.forward)(dataclasses.replace(one, platform=platform)))
        assert "bf16[2,300,2,16]" in program
        assert "f32[2,300,2,16]" not in program.replace("bf16", "")


def test_the_weights_are_normalized_in_full_precision_wherever_products_are_not():
    assert "HIGHEST" in lowered("tpu", 64, dtype=jnp.float32)


def test_where_the_data_lies_decides_and_rocm_is_not_cuda(monkeypatch):
    def on(platform, version=""):
        device = SimpleNamespace(platform=platform, client=SimpleNamespace(platform_version=version))
        return SimpleNamespace(devices=lambda: [device])

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert platforms.platform_of(jnp.ones(3)) == "cpu"
    assert platforms.platform_of(on("tpu")) == "tpu"
    assert platforms.platform_of(on("gpu", "cuda 13000")) == "cuda"
    assert platforms.platform_of(on("gpu", "rocm 60300")) == "rocm"
    with jax.default_device("cpu"):
        assert jax.eval_shape(lambda x: jnp.zeros(len(platforms.platform_of(x))), jnp.ones(3)).shape == (3,)


def test_a_program_is_on_one_device_if_there_is_one_or_shard_map_has_all_mesh_axes(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda backend=None: {None: 8, "cpu": 1}[backend])
    assert platforms.device_count("cpu") == 1
    assert platforms.on_one_device("cpu")
    assert platforms.device_count("tpu") == platforms.device_count("cuda") == 8
    assert not platforms.on_one_device("tpu")
    mesh, answers = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2), []
    note = lambda x: answers.append([platforms.on_one_device(name) for name in ("cpu", "tpu")]) or x  # noqa: E731
    spec = PartitionSpec()
    with jax.set_mesh(mesh):
        jax.make_jaxpr(note)(jnp.ones(2))
        for axes in ({"data"}, {"data", "model"}):
            jax.make_jaxpr(jax.shard_map(note, axis_names=axes, in_specs=spec, out_specs=spec))(jnp.ones(2))
    assert answers == [[True, False], [True, False], [True, True]]


@pytest.mark.parametrize(
    ("batch", "spec"),
    [((2,), ("data",)), ((2,), ("data", None, "model")), ((2,), (None, "data", "model")), ((), ("data", "model"))],
)
def test_on_explicit_axes_the_results_are_sharded_as_the_query_is(batch, spec):
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    attend = lambda q: dot_product_attention(q, q, q, masks.Causal(), return_lse=True)  # noqa: E731
    with jax.set_mesh(mesh):
        query = jnp.ones((*batch, 97, 4, 8))
        context, lse = jax.eval_shape(attend, jax.device_put(query, NamedSharding(mesh, PartitionSpec(*spec))))
    *of_batch, tokens, heads, width = (*spec, *[None] * (query.ndim - len(spec)))
    assert context.sharding.spec == PartitionSpec(*of_batch, tokens, heads, width)
    assert lse.sharding.spec == PartitionSpec(*of_batch, heads, tokens)


def test_the_explanation_is_that_of_the_platform_on_which_the_arrays_lie(monkeypatch):
    heads, few = jnp.zeros((1, 1024, 2, 8), jnp.bfloat16), jnp.zeros((1, 90, 2, 8), jnp.bfloat16)
    for platform in ("cuda", "rocm", "tpu"):
        monkeypatch.setattr(call, "platform_of", lambda array, platform=platform: platform)
        assert explain_implementation(heads, heads, heads).startswith("dense runs: 8 MB of scores fit in memory")
        assert explain_implementation(few, few, few).startswith("dense runs: 90 × 90 scores in each of 2 heads are few")
        assert f"native does not: is for CPUs, and this is a {platform}" in explain_implementation(heads, heads, heads)
        monkeypatch.setattr(small, "LITTLE_MEMORY", 4 * 1024 * 2047)
        assert explain_implementation(heads, heads, heads).startswith("blockwise runs: its memory is linear")
        monkeypatch.setattr(small, "LITTLE_MEMORY", 4 * 1024 * 2048)
    monkeypatch.setattr(call, "platform_of", lambda array: "rocm")
    assert "cudnn does not: needs an NVIDIA GPU, and this is a rocm" in explain_implementation(heads, heads, heads)


def test_a_call_without_queries_or_keys_is_explained():
    heads, none = jnp.zeros((1, 5, 2, 8)), jnp.zeros((1, 0, 2, 8))
    for query, key in ((none, heads), (heads, none), (none, none)):
        assert explain_implementation(query, key, key).startswith("dense runs: ")


def test_dense_is_chosen_for_few_scores_per_head_and_for_few_in_all():
    def chosen(B, T, H):
        heads = jax.ShapeDtypeStruct((B, T, H, 8), jnp.float32)
        return jax.eval_shape(lambda x: (names.append(choice.choose(checked_call(x, x, x))), x)[1], heads)

    names = []
    for sizes in ((64, 96, 16), (1, 97, 1), (64, 97, 16)):
        chosen(*sizes)
    # Few per head, however many heads; few in all; neither.
    assert names[0] == "dense"
    assert names[2] in ("native", "blockwise")
    one = checked_call(*[jnp.zeros((1, 97, 1, 8))] * 3)
    assert small.unsupported(one) is None
    assert names[1] == ("native" if "native" in KERNELS else "dense")


def test_few_queries_of_many_heads_run_dense_on_a_cpu():
    key = jnp.zeros((1, 12_000, 4, 8))
    *few, more = (checked_call(jnp.zeros((1, T, 32, 8)), key, key) for T in (2, 3, 4, 5))
    assert [small.unsupported(one) for one in few] == [None] * 3
    assert "is for up to 131072 scores" in small.unsupported(more)


@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
@pytest.mark.parametrize("T", [20, 150])
def test_programs_for_all_platforms_and_batches_are_exported_serialized_and_run_here(implementation, T):
    (query,) = draw(0, (3, T, 2, 4))
    run = lambda q: dot_product_attention(q, q, q, masks.Causal(), implementation=implementation)  # noqa: E731
    shape = jax.ShapeDtypeStruct((*export.symbolic_shape("b"), T, 2, 4), jnp.float32)
    exported = export.export(jax.jit(run), platforms=("cpu", "cuda", "tpu"))(shape)
    if find_spec("flatbuffers"):  # without it JAX cannot serialize
        exported = export.deserialize(exported.serialize())
    chex.assert_trees_all_close(exported.call(query), run(query), atol=1e-6)


def test_an_export_may_leave_the_number_of_tokens_open():
    shape = jax.ShapeDtypeStruct((2, *export.symbolic_shape("t"), 2, 4), jnp.float32)
    exported = export.export(jax.jit(lambda q: dot_product_attention(q, q, q, masks.Causal())))(shape)
    (query,) = draw(0, (2, 30, 2, 4))
    chex.assert_trees_all_close(exported.call(query), KERNELS["dense"](query, query, query, masks.Causal()), atol=1e-6)
    keys = jax.ShapeDtypeStruct((2, *export.symbolic_shape("s"), 2, 4), jnp.float32)
    exported = export.export(jax.jit(lambda q, k: dot_product_attention(q, k, k)))(
        jax.ShapeDtypeStruct(query.shape, query.dtype), keys
    )
    chex.assert_trees_all_close(
        exported.call(query, query[:, :7]), KERNELS["dense"](query, *[query[:, :7]] * 2), atol=1e-6
    )
    with pytest.raises(ValueError, match="blockwise' needs numbers of tokens"):
        export.export(jax.jit(lambda q: KERNELS["blockwise"](q, q, q)))(shape)


@pytest.mark.parametrize(("batch", "K", "G"), [((2,), 2, 3), ((2,), 3, 4), ((), 3, 4), ((2, 3), 1, 6), ((), 1, 1)])
def test_blocks_cover_each_query_of_each_head_once(monkeypatch, batch, K, G):
    monkeypatch.setattr(blocks, "SIDE", 32)
    monkeypatch.setattr(blocks, "SCORES_CPU", 2048)  # two heads
    query, key = (jax.ShapeDtypeStruct((*batch, 70, heads, 8), jnp.float32) for heads in (K * G, K))
    cut = blocks.choose_blocks(call.AttentionCall(query, key, key), 70, 70)
    times = np.zeros((*batch, K * G, cut.outer * cut.outer_count), int)
    for step in range(cut.steps):
        heads, outer = cut.at(step)
        starts = (*heads.start[:-2], heads.first_query_head, outer * cut.outer)
        sizes = (*heads.size[:-2], heads.size[-2] * heads.size[-1], cut.outer)
        times[tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))] += 1
    assert (times == 1).all()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "default"])
@pytest.mark.parametrize("devices", [1, 8])
def test_blocks_never_have_more_scores_than_asked(monkeypatch, platform, devices):
    for module in (blocks, platforms):
        monkeypatch.setattr(module, "device_count", lambda platform: devices)
    most = blocks.SCORES_CPU if (platform, devices) == ("cpu", 1) else blocks.SCORES_ACCELERATOR * devices
    for B, K, G in ((1, 1, 1), (8191, 4, 8), (127, 3, 7), (2, 61, 1), (31, 1, 33), (3000, 32, 1)):
        for T in (1, 100, 513, 4096):
            query, key = (jax.ShapeDtypeStruct((B, T, heads, 8), jnp.float32) for heads in (K * G, K))
            one = call.AttentionCall(query, key, key, platform=platform)
            cut = blocks.choose_blocks(one, T, T)
            assert np.prod((*cut.heads, cut.outer, cut.inner)) <= max(most, 512 * 512)
            assert np.prod(cut.heads) * np.prod(cut.head_counts) == B * K * G
            assert cut.outer * cut.outer_count >= T
