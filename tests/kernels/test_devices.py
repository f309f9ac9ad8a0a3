"""Eight virtual devices, in a process of their own: the numbers of one device, without gathering keys."""

import pytest
from eight_devices import on_eight_devices


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
def test_gradients_of_slopes_and_tables_are_those_of_float64_on_all_devices():
    # A slope's gradient is a sum over all distances that nearly cancels: float32 is exact relative to its terms alone.
    finished = on_eight_devices("""
        arrays = draw(8, 130, 4, 8), draw(8, 130, 2, 8), draw(8, 130, 2, 8), draw(8, 130, 4, 8)
        parameters = draw(4) / 10, draw(12, 4)
        def gradients(query, key, value, gradient, slopes, table, implementation=None):
            def loss(slopes, table):
                kinds = biases.Alibi(slopes), biases.Relative(table, max_distance=90)
                options = {"implementation": implementation}
                attend = lambda bias: dot_product_attention(query, key, value, masks.Causal(), bias=bias, **options)
                return sum((attend(bias) * gradient).sum() for bias in kinds)
            return jax.grad(loss, (0, 1))(slopes, table)
        with jax.enable_x64(True):
            wide = [jnp.asarray(np.asarray(array), jnp.float64) for array in (*arrays, *parameters)]
            expected = [np.asarray(array) for array in gradients(*wide, "dense")]
            terms = 130 * float(jnp.abs(wide[3]).sum())  # the farthest distance, times what a weight may change
        for implementation in (None, "dense"):
            run = jax.jit(lambda *arrays: gradients(*arrays, implementation))
            for kind in (AxisType.Auto, AxisType.Explicit):
                mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
                for spec in (P(), P("data"), P(None, None, "model"), P("data", None, "model")):
                    sharded = [jax.device_put(array, NamedSharding(mesh, spec)) for array in arrays]
                    whole = [jax.device_put(array, NamedSharding(mesh, P())) for array in parameters]
                    for came, right, size in zip(run(*sharded, *whole), expected, (terms, terms / 130), strict=True):
                        assert np.abs(np.asarray(came) - right).max() < 1e-7 * size, (implementation, kind, spec)
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


@pytest.mark.slow
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
