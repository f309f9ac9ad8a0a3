"""Counts on one device here, and on eight virtual ones in a process of their own."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from jaxattn.benchmark.paper_scale import Rates
from jaxattn.benchmark.scaling import SPLITS, STRONG, WEAK, Problem, tiles_of_devices
from jaxattn.benchmark.scaling_check import predicted_seconds


def test_tiles_are_counted():
    assert tiles_of_devices(512, 1) == [1 + 2 + 3 + 4]
    assert tiles_of_devices(512, 2) == [1 + 4, 2 + 3]  # zig-zag order, a tile in each chunk
    assert tiles_of_devices(1024, 2) == [1 + 2 + 7 + 8, 3 + 4 + 5 + 6]
    assert tiles_of_devices(3 * 128, 3) == [1 + 6, 2 + 5, 3 + 4]  # of 64 tokens
    assert tiles_of_devices(3 * 127, 3) == [1, 2, 3]  # cannot be cut into two chunks for each


def test_eight_devices_have_the_same_problem_in_strong_and_weak_scaling():
    for name, split in SPLITS.items():
        assert WEAK[name].grown(split.grows, 8) == STRONG


def test_the_predicted_time_is_that_of_one_devices_work():
    problem = Problem(batch_size=4, T=8, heads=2, head_width=4, layers=1)
    multiplied, parameters = 12 * 8**2 + 256 * 8, 12 * 8**2 + 256 * 8 + 8 * 8
    products, attention = 6 * multiplied * 2 * 8, 7 * 2 * 8 * (8 * 8 / 2) * 2
    memory = 4 * 17 * 4 * 2 * 8 * 8 + 28 * parameters
    assert predicted_seconds(problem, 2, Rates(3.0, 5.0, 7.0)) == pytest.approx(
        products / 3 + attention / 5 + memory / 7
    )


@pytest.mark.slow
def test_programs_send_what_their_split_needs_and_devices_share_work_and_memory():
    program = """
        import json
        from jaxattn.benchmark.scaling import SPLITS, Problem, measure_split, use_virtual_devices
        use_virtual_devices()
        small = Problem(batch_size=8, T=1024, heads=8, head_width=16, layers=1)
        print(json.dumps({name: [measure_split(split, small, n) for n in (1, 4)] for name, split in SPLITS.items()}))
    """
    environment = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("--xla_backend_optimization_level=0", "")}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    rows = json.loads(finished.stdout)
    for name, (one, four) in rows.items():
        assert one["bytes_sent"] == one["bytes_on_paper"] == 0
        # Tensor parallelism sums the gradients of queries, keys and values one by one.
        most = 1.6 if name == "model" else 1.4
        assert 0.99 <= four["bytes_sent"] / four["bytes_on_paper"] < most, name
        # The logits are whole on each device of "model".
        assert four["operations"] <= one["operations"] / (2.5 if name == "model" else 3.99), name
        assert four["tiles"] == one["tiles"] / 4
        assert four["memory"] < one["memory"]
    for name in ("data", "data, parameters"):
        assert rows[name][1]["bytes_sent"] == pytest.approx(rows[name][1]["bytes_on_paper"], rel=0.02)
    assert rows["data, parameters"][1]["memory"] < rows["data"][1]["memory"]
