"""Eight virtual devices, in a process of their own: the numbers of one device, without gathering keys."""

import os
import subprocess
import sys
import textwrap

import pytest

PREAMBLE = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxattn import *
assert len(jax.devices()) == 8
rng = np.random.default_rng(0)
def draw(*shape): return jnp.asarray(rng.standard_normal(shape), jnp.float32)
def with_gradients(attend, *arrays):
    *inputs, gradient = arrays
    context, vjp = jax.vjp(attend, *inputs)
    return context, *vjp(gradient)
def check(came, expected):
    for a, b in zip(came, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=5e-6 * max(1, np.abs(b).max()))
"""


def on_eight_devices(program):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PREAMBLE + textwrap.dedent(program)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)


def test_examples_and_heads_stay_sharded_without_gathering():
    finished = on_eight_devices("""
        arrays = draw(8, 130, 4, 8), draw(8, 130, 2, 8), draw(8, 130, 2, 8), draw(8, 130, 4, 8)
        bias = draw(130, 130)
        lengths = jnp.arange(8) * 10 + 5
        def attend(query, key, value, bias):
            mask = masks.Causal() & masks.Lengths(lengths)
            options = {"bias": bias, "dropout_rate": 0.1, "dropout_key": jax.random.key(0)}
            return dot_product_attention(query, key, value, mask, **options)
        run = jax.jit(lambda q, k, v, g, b: with_gradients(attend, q, k, v, b, g))
        expected = run(*arrays, bias)
        specs = P("data"), P(None, None, "model"), P("data", None, "model"), P(("data", "model"))
        for spec, kind in [(spec, AxisType.Auto) for spec in specs] + [(P("data", None, "model"), AxisType.Explicit)]:
            mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
            sharded = [jax.device_put(array, NamedSharding(mesh, spec)) for array in arrays]
            whole = jax.device_put(bias, NamedSharding(mesh, P()))
            compiled = run.lower(*sharded, whole).compile()
            assert "all-gather" not in compiled.as_text(), (spec, kind)
            came = compiled(*sharded, whole)
            check(came, expected)
            assert came[1].addressable_shards[0].data.size < arrays[0].size, (spec, kind)
        print("done")
    """)
    assert finished.stdout.strip() == "done", finished.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [8, 4, 2, 1])
def test_no_key_is_gathered_for_any_number_of_kv_heads_and_devices(kv_heads):
    finished = on_eight_devices(f"""
        arrays = draw(8, 128, 8, 8), draw(8, 128, {kv_heads}, 8), draw(8, 128, {kv_heads}, 8), draw(8, 128, 8, 8)
        attend = lambda *arrays: dot_product_attention(*arrays, masks.Causal())
        forward = jax.jit(lambda q, k, v, g: (attend(q, k, v),))
        both = jax.jit(lambda *arrays: with_gradients(attend, *arrays))
        expected = both(*arrays)
        for n in (2, 4, 8):
            for kind in (AxisType.Auto, AxisType.Explicit):
                mesh = jax.make_mesh((n,), ("d",), axis_types=(kind,), devices=jax.devices()[:n])
                for spec in (P("d"), P(None, None, "d"), P()):
                    # KV heads that the devices do not divide are whole on each.
                    specs = [P() if "d" in spec[2:] and array.shape[2] % n else spec for array in arrays]
                    laid = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, specs, strict=True)]
                    for run in (forward, both):
                        compiled = run.lower(*laid).compile()
                        assert "all-gather" not in compiled.as_text(), (n, kind, spec)
                        came = compiled(*laid)
                        check(came, expected[: len(came)])
                        assert came[0].addressable_shards[0].data.size == came[0].size // (n if len(spec) else 1)
        print("done")
    """)
    assert finished.stdout.strip() == "done", finished.stderr[-3000:]


def test_settings_of_the_thread_hold_on_two_devices():
    finished = on_eight_devices("""
        heads = draw(2, 128, 2, 8)
        mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
        heads = jax.device_put(heads, NamedSharding(mesh, P("d")))
        attend = lambda x: dot_product_attention(x, x, x, masks.Causal(), implementation="blockwise").sum()
        with jax.default_matmul_precision("highest"):
            lowered = jax.jit(jax.grad(attend)).lower(heads).as_text()
        assert lowered.count("HIGHEST") >= 2 * 7  # both operands of two products forward and five backward
        print("done")
    """)
    assert finished.stdout.strip() == "done", finished.stderr[-3000:]


def test_programs_for_several_devices_are_exported_and_serialized():
    finished = on_eight_devices("""
        from jax.experimental import serialize_executable
        mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
        heads = jax.device_put(draw(8, 128, 2, 8), NamedSharding(mesh, P("d")))
        attend = lambda x: dot_product_attention(x, x, x, masks.Causal(), implementation="blockwise")
        run = jax.jit(jax.grad(lambda x: (attend(x) ** 2).sum()))
        exported = jax.export.export(run)(heads)
        compiled = serialize_executable.serialize(run.lower(heads).compile())
        check([exported.call(heads), serialize_executable.deserialize_and_load(*compiled)(heads)], [run(heads)] * 2)
        print("done")
    """)
    assert finished.stdout.strip() == "done", finished.stderr[-3000:]


def test_it_runs_inside_shard_map_over_some_axes_of_a_mesh():
    finished = on_eight_devices("""
        arrays = draw(4, 130, 4, 8), draw(4, 130, 2, 8), draw(4, 130, 4, 8)
        def run(query, key, gradient):
            attend = lambda q, k: dot_product_attention(q, k, k, masks.Causal(), implementation="blockwise")
            return with_gradients(attend, query, key, gradient)
        mesh = jax.make_mesh((2, 2), ("d", "m"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
        for axes in ({"d"}, {"d", "m"}):
            sharded = jax.shard_map(run, mesh=mesh, axis_names=axes, in_specs=P("d"), out_specs=P("d"))
            check(jax.jit(sharded)(*arrays), jax.jit(run)(*arrays))
        print("done")
    """)
    assert finished.stdout.strip() == "done", finished.stderr[-3000:]


def test_it_runs_inside_shard_map_where_some_inputs_are_everywhere_the_same():
    finished = on_eight_devices("""
        queries, keys, gradient = draw(8, 130, 4, 8), draw(1, 130, 2, 8), draw(8, 130, 4, 8)
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        def attend(implementation):
            def call(query, key):
                key = jnp.broadcast_to(key, (len(query), *key.shape[1:]))
                return dot_product_attention(query, key, key, masks.Causal(), implementation=implementation)
            return lambda query, key, gradient: with_gradients(call, query, key, gradient)
        specs, laid = (P("data"), P(), P("data")), (P("data"), P("data"), P())
        sharded = jax.jit(jax.shard_map(attend("blockwise"), mesh=mesh, in_specs=specs, out_specs=laid))
        check(sharded(queries, keys, gradient), attend("dense")(queries, keys, gradient))
        print("done")
    """)
    assert finished.stdout.strip() == "done", finished.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["None", "masks.Causal()", "masks.SlidingWindow(9)"])
def test_a_ring_of_devices_gives_the_numbers_of_one(mask):
    finished = on_eight_devices(f"""
        arrays = draw(2, 64, 4, 4), draw(2, 64, 2, 4), draw(2, 64, 2, 3), draw(2, 64, 4, 3)
        ids = jnp.sort(jnp.asarray(rng.integers(0, 4, (2, 64))), -1)
        for segment_ids in (None, ids):
            mask = {mask}
            both = mask if segment_ids is None else masks.Segments(ids) if mask is None else mask & masks.Segments(ids)
            alone = lambda q, k, v: dot_product_attention(q, k, v, both, implementation="dense")
            expected = with_gradients(alone, *arrays)
            for sizes, kind in (((8, 1, 1), AxisType.Auto), ((2, 2, 2), AxisType.Explicit)):
                mesh = jax.make_mesh(sizes, ("tokens", "data", "heads"), axis_types=(kind,) * 3)
                options = dict(mesh=mesh, axis="tokens", batch_axis="data", head_axis="heads", segment_ids=segment_ids)
                ring = lambda q, k, v: ring_attention(q, k, v, mask, **options)
                check(jax.jit(lambda *arrays: with_gradients(ring, *arrays))(*arrays), expected)
        one = [array[0] for array in arrays[:3]]
        np.testing.assert_allclose(ring_attention(*one, {mask}, mesh=mesh, axis="tokens"),
                                   dot_product_attention(*one, {mask}), atol=1e-5)
        print("done")
    """)
    assert finished.stdout.strip() == "done", finished.stderr[-3000:]


def test_a_rings_memory_on_each_device_falls_with_the_devices():
    finished = on_eight_devices("""
        def temporary(n):
            mesh = jax.make_mesh((n,), ("tokens",), axis_types=(AxisType.Auto,), devices=jax.devices()[:n])
            heads = jax.ShapeDtypeStruct((1, 8192, 2, 16), jnp.float32, sharding=NamedSharding(mesh, P(None, "tokens")))
            ring = lambda q, k, v: ring_attention(q, k, v, masks.Causal(), mesh=mesh, axis="tokens").sum()
            compiled = jax.jit(jax.grad(ring, (0, 1, 2))).lower(heads, heads, heads).compile()
            assert "all-gather" not in compiled.as_text()
            return compiled.memory_analysis().temp_size_in_bytes
        sizes = [temporary(n) for n in (2, 4, 8)]
        assert sizes[0] > sizes[1] > sizes[2], sizes
        print("done")
    """)
    assert finished.stdout.strip() == "done", finished.stderr[-3000:]


def test_bad_input_of_a_ring_is_named():
    finished = on_eight_devices("""
        mesh = jax.make_mesh((8,), ("tokens",), axis_types=(AxisType.Auto,))
        heads = draw(2, 64, 4, 4)
        def refused(words, *arrays, mask=None, error=ValueError, **options):
            try:
                ring_attention(*arrays, mask, **({"mesh": mesh, "axis": "tokens"} | options))
            except error as came:
                assert words in str(came), came
            else:
                raise AssertionError(words)
        refused("not an axis of the mesh, which has tokens", heads, heads, heads, axis="heads")
        refused("65 tokens do not divide", *[draw(2, 65, 4, 4)] * 3)
        refused("segment_ids=ids", heads, heads, heads, mask=masks.Segments(jnp.zeros((2, 64), int)))
        refused("2 examples do not divide", heads, heads, heads, batch_axis="tokens")
        refused("has no batch", *[heads[0]] * 3, batch_axis="tokens")
        refused("same number of tokens", heads, heads[:, :56], heads[:, :56])
        print("done")
    """)
    assert finished.stdout.strip() == "done", finished.stderr[-3000:]
