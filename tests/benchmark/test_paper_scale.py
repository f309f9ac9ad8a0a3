from pathlib import Path

import pytest

from jaxattn import GPTConfig
from jaxattn.benchmark import paper_scale, volumes
from jaxattn.benchmark.paper_scale import H100, Layout, Rates, Work, estimate, memory_of_device, sent_in_step
from jaxattn.benchmark.paper_scale import work_of_step as work
from jaxattn.benchmark.volumes import Sizes

# 2 layers of width 10: query and out 100 each, key and value 40 each, feed-forward 2 · 400; embedding 7 · 10.
TINY = Sizes(layers=2, width=10, kv_width=4, vocab_size=7)


def test_parameters_are_counted():
    assert TINY.multiplied == 2 * (2 * 100 + 2 * 40 + 2 * 400) + 70
    gpt = Sizes.of_gpt(GPTConfig(vocab_size=256, context_length=128, num_layers=4, num_heads=4, features=128))
    assert gpt.parameters == 4 * 12 * 128**2 + 256 * 128 + 128 * 128


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (volumes.data_bytes(1000, 4, 4), 2 * 3 / 4 * 4000),
        (volumes.shard_bytes(1000, 4, 4, gathers=1), 2 * 3 / 4 * 4000),
        (volumes.shard_bytes(1000, 4, 4, gathers=2), 3 * 3 / 4 * 4000),
        # four sums in each of 2 layers, of 30 tokens' vectors of 10 numbers
        (volumes.model_bytes(TINY, 30, 4, 4), 4 * 2 * 2 * 3 / 4 * 4 * 30 * 10),
        # keys and values, 2 · 30 · 4 numbers in each of 2 layers: 3 hops in either pass, and 4 of their gradients
        (volumes.context_bytes(TINY, 30, 4, 4), (3 + 3 + 4) * 2 * 2 * 30 * 4 * 4),
        (volumes.context_bytes(TINY, 30, 4, 2), ((3 + 3) * 2 + 4 * 4) * 2 * 2 * 30 * 4),
        # the same for all 120 tokens, whose gradients need not go home: 3/4 of them in either pass
        (volumes.gathered_context_bytes(TINY, 120, 4, 2), (2 * 2 + 4) * 3 / 4 * 2 * 2 * 120 * 4),
    ],
)
def test_bytes_sent_on_paper(sent, expected):
    assert sent == expected


def test_one_device_sends_nothing():
    alone = [volumes.data_bytes(9, 1, 4), volumes.shard_bytes(9, 1, 4, 2), volumes.model_bytes(TINY, 9, 1, 4)]
    assert [*alone, volumes.context_bytes(TINY, 9, 1, 4)] == [0, 0, 0, 0]


def test_the_work_of_a_step():
    step = work(TINY, 6, Layout(), width=4, recompute=False, shards=1)
    assert step.products == 6 * TINY.multiplied * 6
    # Seven products of 2 · 10 operations for each of 36 / 2 entries, in 2 layers.
    assert step.attention == 7 * 20 * 18 * 2
    assert step.memory == 4 * 17 * 4 * 6 * 10 * 2 + 28 * TINY.parameters
    again = work(TINY, 6, Layout(), width=4, recompute=True, shards=1)
    assert again.products / step.products == pytest.approx(8 / 6)
    assert again.attention / step.attention == pytest.approx(9 / 7)


def test_devices_share_the_work_and_a_ring_in_order_waits():
    alone = work(TINY, 8, Layout(), 2, False, 1)
    split = work(TINY, 8, Layout(data=3, context=2, model=2), 2, False, 12)
    assert split.products == alone.products / 4
    assert split.attention == alone.attention / 4
    # In order, 4 devices take the time of 3.5 whole blocks of the 16; causal work is 16 / 2 blocks on 4 devices.
    in_order = work(TINY, 8, Layout(context=4, zigzag=False), 2, False, 4)
    assert in_order.attention == alone.attention / 4 * 3.5 / 2


def test_the_time_is_the_sum_of_what_takes_time():
    assert Work(12, 6, 4).seconds(Rates(4, 3, 2)) == 3 + 2 + 2
    assert Rates(593.7e12, 494.75e12, 2.68e12) == pytest.approx(H100)


def test_groups_that_span_nodes_send_through_their_adapters():
    parameters = 4 * TINY.parameters
    within = sent_in_step(TINY, 64, Layout(data=8), recompute=False)
    assert within.parameters == pytest.approx(3 * 7 / 8 * parameters / 360e9)
    across = sent_in_step(TINY, 64, Layout(data=64), recompute=False)
    assert across.parameters == pytest.approx(3 * 63 / 64 * parameters / 320e9)  # eight adapters at 40 GB/s
    one_each = sent_in_step(TINY, 64, Layout(data=8, model=8), recompute=False)
    assert one_each.parameters == pytest.approx(3 * 7 / 8 * parameters / 8 / 40e9)
    gathered = sent_in_step(TINY, 64, Layout(context=16, gather_keys=True), recompute=False)
    assert gathered.keys == pytest.approx((2 * 2 + 4) * 15 / 16 * 2 * 2 * 64 * 4 / 320e9)
    ring = sent_in_step(TINY, 64, Layout(context=16), recompute=False)
    assert ring.keys == pytest.approx((2 * 15 * 2 + 16 * 4) * 2 * 4 * 4 * 2 / 40e9)


def test_memory_falls_with_the_devices_until_activations_remain():
    alone = memory_of_device(TINY, 64, Layout(), recompute=False)
    assert alone == 16 * TINY.parameters + 2 * 34 * 64 * 10 + 8 * 64 * 7
    assert memory_of_device(TINY, 64, Layout(context=4), recompute=False) == alone / 4
    assert memory_of_device(TINY, 64, Layout(context=4, gather_keys=True), False) == alone / 4 + 2 * 64 * 4 * 6
    assert memory_of_device(TINY, 64, Layout(), recompute=True) < alone


def test_the_table_has_a_line_for_each_layout_and_no_rate_above_the_published_one():
    lines = list(paper_scale.table())
    assert len(lines) == 2 + len(paper_scale.LAYOUTS)
    assert len({line.count("|") for line in lines}) == 1
    for T, layout in paper_scale.LAYOUTS:
        each = estimate(paper_scale.MODEL, T, layout)
        assert layout.devices in (8, 64, 1024)
        assert 0 < each.utilization[0] <= each.utilization[1] < 0.6
        assert each.shortest <= each.longest <= 2 * each.shortest


def test_the_page_shows_the_table():
    page = (Path(paper_scale.__file__).parent / "scaling.md").read_text(encoding="utf-8")
    assert "\n".join(paper_scale.table()) in page
