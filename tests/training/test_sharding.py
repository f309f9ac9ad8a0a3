"""How a training state and a batch are split over devices: memory on each device, and the same losses."""

import math

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from programs import measured

from jaxattn import GPT, GPTConfig
from jaxattn.training.batches import Batch, fill_up
from jaxattn.training.devices import choose_data_size
from jaxattn.training.optimizer import adamw, cosine_schedule
from jaxattn.training.sharding import make_ring, state_sharding
from jaxattn.training.step import make_init, token_weights

CONFIG = GPTConfig(256, 32, 2, 2, 32)


def described(config=CONFIG):
    """The shapes of a training state."""
    return jax.eval_shape(make_init(GPT(config), adamw(cosine_schedule(10, 1e-2), None)), jax.random.key(0))


def bytes_on_one_device(state, shardings):
    def held(leaf, sharding):
        return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(held, state, shardings)))


@pytest.mark.parametrize("model", [1, 2])
def test_sharded_parameters_and_moments_take_one_nth_of_the_memory_on_each_of_n_devices(model):
    state = described()
    whole = bytes_on_one_device(state, state_sharding(AbstractMesh((1, 1, 1), ("data", "model", "seq")), state))
    for data in (1, 2, 4, 8):
        mesh = AbstractMesh((data, model, 2), ("data", "model", "seq"))
        replicated, sharded = (bytes_on_one_device(state, state_sharding(mesh, state, way)) for way in (False, True))
        assert replicated >= whole / model
        assert sharded <= replicated / data * 1.02


def test_what_no_device_count_divides_is_replicated():
    state = {"kernel": jax.ShapeDtypeStruct((6, 9), "float32"), "step": jax.ShapeDtypeStruct((), "int32")}
    for size, spec in ((2, ("data", None)), (3, (None, "data")), (4, (None, None))):
        shardings = state_sharding(AbstractMesh((size, 1, 1), ("data", "model", "seq")), state, True)
        assert tuple(shardings["kernel"].spec) == spec
        assert tuple(shardings["step"].spec) == ()


@pytest.mark.parametrize(
    ("devices", "batch_size", "used"),
    [(6, 16, 6), (7, 16, 6), (5, 16, 4), (12, 16, 8), (64, 16, 16), (1, 3, 1), (2, 3, 2)],
)
def test_as_many_devices_are_used_as_make_a_step_faster(devices, batch_size, used):
    """The slowest device has as few sequences as with all devices, and with one device less it has more."""
    assert choose_data_size(devices, batch_size) == used
    assert math.ceil(batch_size / used) == math.ceil(batch_size / devices)
    assert used == 1 or math.ceil(batch_size / (used - 1)) > math.ceil(batch_size / used)


@pytest.mark.parametrize(
    ("documents", "axis"), [(None, 0), (np.ones((1, 2, 9), int), 1)], ids=["one document", "packed and stacked"]
)
def test_sequences_that_fill_up_a_batch_have_no_loss(documents, axis):
    tokens = np.arange(18).reshape(2, 9) if axis == 0 else np.arange(18).reshape(1, 2, 9)
    filled = fill_up(Batch(tokens, documents), 3, axis)
    assert filled.is_real.sum() == 2
    if axis:
        filled = Batch(*(array[0] for array in filled))
    np.testing.assert_array_equal(token_weights(filled), [[1] * 8, [1] * 8, [0] * 8])
    np.testing.assert_array_equal(filled.tokens[:2], tokens.reshape(2, 9))
    assert fill_up(Batch(tokens, documents), 2, axis).is_real is None


@pytest.mark.parametrize(
    ("kv_heads", "head_axis", "axis"), [(4, "model", "model"), (2, "model", "model"), (1, None, None)]
)
def test_kv_heads_are_split_over_the_model_axis_where_it_divides_them(kv_heads, head_axis, axis):
    """Where it does not, each device attends with all heads; the kernel's columns are split if they can be."""
    mesh = AbstractMesh((1, 2, 2), ("data", "model", "seq"))
    assert make_ring(mesh, kv_heads).head_axis == head_axis
    kernel = {"key": {"kernel": jax.ShapeDtypeStruct((12, 3 * kv_heads), "float32")}}
    assert tuple(state_sharding(mesh, kernel)["key"]["kernel"].spec) == (None, axis)


@pytest.mark.slow
def test_every_mesh_gives_the_losses_of_one_device():
    """With sharded parameters, microbatches, shared KV heads, and on 3 devices, whose last sequence is no real one.

    The bytes are those of the arrays that each device holds, before and after the steps.
    """
    results = measured("""
        import json, jax, numpy as np
        from jaxattn import GPT, GPTConfig
        from jaxattn.training.batches import Batch
        from jaxattn.training.devices import make_mesh
        from jaxattn.training.sharding import bytes_per_device, make_ring, shard_batch
        from jaxattn.training.optimizer import adamw, cosine_schedule, muon
        from jaxattn.training.step import init_state, make_step

        schedule = cosine_schedule(10, 1e-2)
        tokens = Batch(np.random.default_rng(0).integers(0, 256, (8, 17)).astype(np.int32))
        results = []
        for name, heads, kv_heads, make_optimizer, axes, shard, microbatches in (
            ("adamw", 2, 2, adamw, {"data": 1}, False, 1), ("adamw", 2, 2, adamw, {"data": 2}, True, 1),
            ("adamw", 2, 2, adamw, {"data": 3}, False, 3), ("adamw", 2, 2, adamw, {"data": 4}, True, 2),
            ("adamw", 2, 2, adamw, {"data": 8}, True, 1), ("adamw", 2, 2, adamw, {"data": 4, "model": 2}, True, 2),
            ("adamw", 2, 2, adamw, {"data": 2, "model": 2, "seq": 2}, True, 2),
            ("kv", 4, 1, adamw, {"data": 1}, False, 1), ("kv", 4, 1, adamw, {"data": 2, "model": 4}, True, 1),
            ("kv", 4, 1, adamw, {"data": 2, "model": 2, "seq": 2}, False, 1),
            ("muon", 2, 2, muon, {"data": 1}, False, 1), ("muon", 2, 2, muon, {"data": 4}, True, 1),
        ):
            config = GPTConfig(256, 16, 1, heads, 32, num_kv_heads=kv_heads)
            mesh = make_mesh(axes, 8, heads, 16)
            model = GPT(config, ring=make_ring(mesh, kv_heads))
            optimizer = make_optimizer(schedule, mesh)
            state = init_state(model, optimizer, jax.random.key(0), mesh, shard)
            step = make_step(model, optimizer, schedule, jax.random.key(1), mesh, microbatches, shard)
            batch, before, losses = shard_batch(mesh, tokens), bytes_per_device(state), []
            for _ in range(4):
                state, metrics = step(state, batch)
                losses.append(float(metrics.loss))
            results.append((name, axes, shard, before, bytes_per_device(state), losses))
        print(json.dumps(results))
    """)
    expected, held = {}, {}
    for name, axes, shard, before, after, losses in results:
        assert losses == pytest.approx(expected.setdefault(name, losses), rel=1e-5), (name, axes)
        assert before == after
        assert len(set(before)) == 1, axes
        if len(axes) == 1:
            held[name, axes["data"] if shard else 1] = before[0]
    assert len(held) == 7
    for (name, devices), number in held.items():
        assert held[name, 1] / devices <= number <= held[name, 1] / devices * 1.02


@pytest.mark.slow
def test_a_checkpoint_is_saved_from_shards_and_resumes_on_any_mesh(tmp_path):
    """On 1, then 4, then 2 × 2 devices; and on the same mesh with the same losses to the last bit."""
    text = tmp_path / "text.txt"
    text.write_text("the old dog chased him " * 300)
    results = measured(f"""
        import dataclasses, gc, json, jax
        from pathlib import Path
        from jaxattn.training.config import TrainConfig
        from jaxattn.training.recovery import LAST
        from jaxattn.training.run import Run
        from jaxattn.training.sharding import bytes_per_device

        place = Path({str(tmp_path)!r})
        config = TrainConfig(text=(str(place / "text.txt"),), layers=1, heads=2, width=32, context_length=16,
            batch_size=8, dropout=0.1, steps=12, save_every=4)
        held = []

        def train(name, mesh, shard, steps, resume=None):
            run = Run(dataclasses.replace(config, mesh=mesh, shard_parameters=shard, out=str(place / name)), resume)
            run.config, save = dataclasses.replace(run.config, steps=steps), run.checkpoints._manager.save

            def save_and_measure(*arguments, **options):
                if shard and mesh == "data=4":
                    gc.collect()  # the arrays of the runs before
                    big = [
                        array for array in jax.live_arrays()
                        if array.size > 1000 and array.dtype == "float32" and len(array.sharding.device_set) > 1
                    ]
                    held.append((max(bytes_per_device(big)), max(bytes_per_device(run.state))))
                return save(*arguments, **options)

            run.checkpoints._manager.save = save_and_measure
            run.train()

        train("one", "data=1", False, 12)
        train("moved", "data=1", False, 4)
        train("moved", "data=4", True, 8, LAST)
        train("moved", "data=2,model=2", True, 12, LAST)
        train("four", "data=4", True, 12)
        train("again", "data=4", True, 8)
        train("again", "data=4", True, 12, LAST)
        losses = {{}}
        for name in ("one", "moved", "four", "again"):
            records = map(json.loads, (place / name / "log.jsonl").read_text().splitlines())
            losses[name] = [record[key] for record in records for key in ("loss", "held_out_loss") if key in record]
        print(json.dumps([losses, held]))
    """)
    losses, held = results
    assert len(losses["one"]) == 17  # of 12 steps, and of held-out text after 0, 4, 8, 10 and 12
    for name in ("moved", "four"):
        assert losses[name] == pytest.approx(losses["one"], rel=2e-5), name
    assert losses["again"] == losses["four"]
    for while_saving, state in held:
        assert while_saving <= 2 * state  # the state, and the copy that is written
