"""Ring attention on eight virtual devices: the numbers of one device in float64, the same work and memory on each."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import draw_heads
from eight_devices import on_eight_devices
from ring_cases import NAMES

from jaxattn import masks, ring_attention
from jaxattn.ring import zigzag_order
from jaxattn.ring.order import Layout, choose_layout, plan_hops
from jaxattn.ring.parts import moved

RUN = """
from ring_cases import bytes_sent, check_case, check_zigzag
def mesh_of(n, *others, kind=AxisType.Auto):
    sizes, names = (n, *others), ("tokens", "data", "heads")[: 1 + len(others)]
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, names, axis_types=(kind,) * len(sizes), devices=devices)
"""


def on_devices(program):
    finished = on_eight_devices(RUN + program + "\nprint('done')")
    assert finished.stdout.strip() == "done", finished.stderr[-3000:]


def test_every_strategy_gives_the_numbers_of_one_device_and_sends_no_more_than_it_must():
    on_devices("""
mesh = mesh_of(2, 2, 2, kind=AxisType.Explicit)
check_case("everything", T=8, S=16, mesh=mesh, axis="tokens", batch_axis="data", head_axis="heads")
check_case("bias", mesh=mesh_of(4), axis="tokens", strategy="all_gather")
check_case("dropout", K=1, mesh=mesh_of(4), axis="tokens", strategy="all_to_all")

def compiled(n, mask, differentiate):
    mesh = mesh_of(n)
    heads = jax.ShapeDtypeStruct((1, 2048, 4, 16), jnp.bfloat16, sharding=NamedSharding(mesh, P(None, "tokens")))
    ring = lambda q, k, v: ring_attention(q, k, v, mask, mesh=mesh, axis="tokens")
    both = jax.grad(lambda *heads: ring(*heads).astype(jnp.float32).sum(), (0, 1, 2))
    return jax.jit(both if differentiate else ring).lower(heads, heads, heads).compile()
def sent(program):
    total = bytes_sent(program)
    return total.pop("collective-permute") if set(total) == {"collective-permute"} else total
array = 2048 * 4 * 16 * 2  # bytes of all queries, keys or values
memory = []
for n in (4, 8):
    program = compiled(n, None, True)
    # Keys and values travel n - 1 times in bfloat16, forward and backward; their gradients n - 1 times in float32.
    assert sent(program) == (n - 1) * (2 + 2 + 4) * array // n, (n, bytes_sent(program))
    memory.append(program.memory_analysis().temp_size_in_bytes)
assert memory[0] > 1.5 * memory[1], memory
zigzag = sent(compiled(4, masks.Causal(), False))
assert zigzag == (3 * 2 + 4) * array // 4, zigzag  # queries, keys, values and the context are reordered
window = sent(compiled(8, masks.SlidingWindow(100), False))
assert window == 2 * array // 8, window  # one hop
""")


@pytest.mark.slow
@pytest.mark.parametrize("names", [NAMES[first::5] for first in range(5)], ids=", ".join)
def test_every_option_gives_the_numbers_of_one_device_on_any_number_of_devices(names):
    on_devices(f"""
axes = {{"axis": "tokens", "batch_axis": "data", "head_axis": "heads"}}
for name in {names!r}:
    check_case(name, K=4, mesh=mesh_of(2), axis="tokens")
    check_case(name, T=40, S=8, K=1, mesh=mesh_of(8), axis="tokens")
    for strategy in ("ring", "all_gather", "all_to_all"):
        check_case(name, T=16, S=32, mesh=mesh_of(4), axis="tokens", strategy=strategy)
        check_case(name, mesh=mesh_of(2, 2, 2, kind=AxisType.Explicit), strategy=strategy, **axes)
    check_case(name, mesh=mesh_of(2, 2, 2), axis="tokens")
""")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ring", "all_gather", "all_to_all"])
@pytest.mark.parametrize("kind", ["array", "alibi"])
def test_tokens_in_zigzag_order_give_the_numbers_of_natural_order(strategy, kind):
    on_devices(f"""
for n in (2, 4):
    check_zigzag({kind!r}, mesh=mesh_of(n), axis="tokens", strategy={strategy!r})
    check_zigzag({kind!r}, 32, 16, mesh=mesh_of(n), axis="tokens", strategy={strategy!r})
""")


@pytest.mark.slow
def test_layers_keep_zigzag_order_with_their_positions():
    on_devices("""
from jaxattn.ring import Ring, zigzag_order
x, order = draw(2, 16, 8), zigzag_order(16, 4)
alone = AttentionLayer(4, 8, rotary_base=100.0, position_bias="alibi")
layer = alone.clone(ring=Ring(mesh_of(4), "tokens", order="zigzag"))
variables = alone.init(jax.random.key(0), x)
run = jax.jit(lambda layer, x: layer.apply(variables, layer.apply(variables, x)), static_argnums=0)
np.testing.assert_allclose(run(layer, x[:, order])[:, np.argsort(order)], run(alone, x), atol=1e-5)
""")


@pytest.mark.slow
def test_bfloat16_is_as_exact_on_eight_devices_as_on_one():
    on_devices("""
heads = [draw(2, 256, 4, 16).astype(jnp.bfloat16) for _ in range(3)]
def errors(attend):
    run = jax.jit(jax.value_and_grad(lambda *heads: (attend(*heads).astype(jnp.float32) ** 2).sum(), (0, 1, 2)))
    wide = [array.astype(jnp.float32) for array in heads]
    right = jax.grad(lambda *heads: (dot_product_attention(*heads, masks.Causal()) ** 2).sum(), (0, 1, 2))(*wide)
    return [float(jnp.abs(a.astype(jnp.float32) - b).mean()) for a, b in zip(run(*heads)[1], right)]
alone = errors(lambda *heads: dot_product_attention(*heads, masks.Causal()))
for strategy in ("ring", "all_gather"):
    ring = errors(lambda *h: ring_attention(*h, masks.Causal(), mesh=mesh_of(8), axis="tokens", strategy=strategy))
    assert all(one < 1.1 * other for one, other in zip(ring, alone)), (strategy, ring, alone)
""")


def tiles_of(layout, mask, T, S, tile=64):
    """Return how many tiles hold unmasked entries on each device, over all steps of the ring."""
    Cq, Ck = T // layout.total, S // layout.total
    expanded, counts = mask.expanded(T, S), np.zeros(layout.devices, int)
    queries = jnp.arange(Cq).reshape(Cq // tile, tile, 1, 1)
    keys = jnp.arange(Ck).reshape(1, 1, Ck // tile, tile)
    for device, source in itertools.product(range(layout.devices), repeat=2):
        for row, column in itertools.product(layout.chunks_of(device), layout.chunks_of(source)):
            part = moved(expanded, jnp.asarray(row * Cq), column * Ck, Cq, Ck)
            part = jax.tree.map(lambda array: jnp.reshape(array, (1, 1, 1, 1)), part)
            counts[device] += part.block_mask(queries, keys).sum()
    return counts


@pytest.mark.parametrize("n", [2, 4, 8])
def test_every_device_computes_as_many_tiles_of_a_causal_mask(n):
    mask = masks.Causal()
    layout = choose_layout(mask, 2048, 2048, n)
    zigzag, natural = (tiles_of(one, mask, 2048, 2048) for one in (layout, Layout(n, 1)))
    assert zigzag.sum() == 32 * 33 // 2
    assert zigzag.max() <= 1.1 * zigzag.mean()
    assert natural.max() > 1.4 * natural.mean()  # the last device would have most of the work


@pytest.mark.parametrize(
    ("mask", "chunks"),
    [
        (masks.Causal(), 2),
        (masks.Causal(jnp.asarray(3)), 2),
        (masks.Causal() | masks.Prefix(jnp.asarray(5)), 2),
        (masks.Causal() & masks.Segments(jnp.zeros(64, int)), 2),
        (masks.SlidingWindow(60), 2),
        (masks.SlidingWindow(4), 1),
        (masks.Causal() & masks.Chunked(4), 1),
        (masks.Lengths(jnp.asarray(5)), 1),
        (None, 1),
    ],
    ids=str,
)
def test_tokens_are_reordered_only_where_that_balances_the_work(mask, chunks):
    assert choose_layout(mask, 64, 64, 4).chunks == chunks
    assert choose_layout(mask, 68, 68, 4).chunks == 1  # no two equal chunks for each device


@pytest.mark.parametrize(
    ("mask", "layout", "hops"),
    [
        (masks.Causal(), Layout(8, 2), (7, 0)),
        (masks.Causal(), Layout(8, 1), (7, 0)),
        (masks.SlidingWindow(8), Layout(8, 1), (1, 0)),
        (masks.SlidingWindow(10), Layout(8, 1), (2, 0)),
        (masks.SlidingWindow(1), Layout(8, 1), (0, 0)),
        (masks.SlidingWindow(8, right=9), Layout(8, 1), (1, 2)),
        (masks.SlidingWindow(4), Layout(8, 2), (1, 1)),
        (masks.SlidingWindow(40, right=30), Layout(8, 1), (7, 0)),
        (masks.Causal() & masks.Chunked(8), Layout(8, 1), (1, 0)),
    ],
    ids=str,
)
def test_keys_travel_no_further_than_the_mask_reaches(mask, layout, hops):
    planned = plan_hops(layout, mask.band(), 64, 64)
    assert (planned.up, planned.down) == hops


def test_zigzag_order_gives_each_device_an_early_and_a_late_chunk():
    order = zigzag_order(24, 3)
    assert order.reshape(3, 2, 4)[:, :, 0].tolist() == [[0, 20], [4, 16], [8, 12]]
    with pytest.raises(ValueError, match="pad to a multiple of 6"):
        zigzag_order(27, 3)


@pytest.mark.parametrize(
    ("words", "arrays", "options"),
    [
        ("axis='head' is not an axis of the mesh, which has tokens", {}, {"axis": "head"}),
        ("axis=None is not an axis of the mesh", {}, {"axis": None}),
        ("axis and head_axis are both 'tokens'", {}, {"head_axis": "tokens"}),
        ("65 tokens do not divide .* pad to 68", {"T": 65}, {}),
        ("62 keys do not divide", {"S": 62}, {}),
        ("60 tokens .* pad to 64", {"T": 60}, {"order": "zigzag"}),
        ("3 examples do not divide", {"batch": (3,)}, {"batch_axis": "heads"}),
        ("1 KV heads do not divide", {"K": 1}, {"head_axis": "heads"}),
        ("has no batch", {"batch": ()}, {"batch_axis": "heads"}),
        ("write one of 'ring', 'all_gather', 'all_to_all'", {}, {"strategy": "ulysses"}),
        ("write one of 'natural', 'zigzag'", {}, {"order": "striped"}),
        ("6 query heads .* write strategy='ring' or 'all_gather'", {"H": 6}, {"strategy": "all_to_all"}),
        ("on each of the 2 devices of head_axis", {}, {"strategy": "all_to_all", "head_axis": "heads"}),
    ],
)
def test_bad_input_of_a_ring_is_named(words, arrays, options):
    mesh = jax.sharding.AbstractMesh((4, 2), ("tokens", "heads"))
    sizes = {"batch": (2,), "T": 64, "H": 4, "K": 2} | arrays
    heads = draw_heads(0, **{"S": sizes["T"]} | sizes)
    with pytest.raises(ValueError, match=words):
        ring_attention(*heads, **{"mesh": mesh, "axis": "tokens"} | options)
