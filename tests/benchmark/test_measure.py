import functools

import jax.numpy as jnp
import pytest

from jaxattn.benchmark import measure as measure_module
from jaxattn.benchmark.measure import Candidate, Comparison, check_agreement, compiled, interleaved_medians, measure

X = jnp.ones(3)


def test_a_wrong_result_is_not_timed():
    right, wrong = compiled("right", lambda x: x, X), compiled("wrong", lambda x: x * 1.01, X)
    nan = compiled("nan", lambda x: x * jnp.nan, X)
    for other in (wrong, nan):
        with pytest.raises(ValueError, match=f"{other.name} differs from right"):
            check_agreement([right, other], 1e-3)
    assert check_agreement([right, right], 1e-3) == {"right": 0.0}


def test_every_array_of_a_result_is_compared():
    second_is_nan = compiled("second is NaN", lambda x: (x, x * jnp.nan), X)
    with pytest.raises(ValueError, match="second is NaN differs"):
        check_agreement([compiled("right", lambda x: (x, x), X), second_is_nan], 1e-3)


def test_every_candidate_gets_a_positive_time():
    medians = interleaved_medians([compiled(name, lambda x: x + 1, X) for name in "ab"], 0.0)
    assert set(medians) == {"a", "b"}
    assert min(medians.values()) > 0


@pytest.mark.parametrize(("disturbed", "quiet", "counted"), [(0.004, 0.001, 0.001), (0.5, 0.1, 0.1), (7.0, 3.0, 7.0)])
def test_a_run_counts_once_the_previous_candidate_is_quiet_and_long_runs_are_not_repeated(
    monkeypatch, disturbed, quiet, counted
):
    """With a clock of our own: for 15 ms of each turn the threads of the other candidate take time."""
    clock, last, began, runs = [0.0], [None], [0.0], []

    def run(name):
        if last[0] != name:
            last[0], began[0] = name, clock[0]
        clock[0] += disturbed if clock[0] - began[0] < 0.015 else quiet
        runs.append(name)

    monkeypatch.setattr(measure_module.time, "perf_counter", lambda: clock[0])
    candidates = [Candidate(name, functools.partial(run, name)) for name in "ab"]
    assert interleaved_medians(candidates, 0.0) == pytest.approx({"a": counted, "b": counted})
    if disturbed > 1:
        assert len(runs) == 6  # three rounds


def test_rows_hold_rates_of_the_work_and_random_results_are_timed_but_not_compared():
    first, second = compiled("first", lambda x: x, X), compiled("second", lambda x: 2 * x, X)
    candidates = [first, second._replace(deterministic=False)]
    comparison = Comparison("group", {"T": 3}, candidates, repeats=2, operations=1e9, tokens=10)
    rows = list(measure(comparison, 0.0))
    assert [(row["group"], row["T"], row["name"], row["difference"]) for row in rows] == [
        ("group", 3, "first", 0.0),
        ("group", 3, "second", None),
    ]
    assert rows[0]["relative"] == 1.0
    for row in rows:
        assert row["gflops"] == pytest.approx(1 / row["seconds"])
        assert row["tokens_per_second"] == pytest.approx(10 / row["seconds"])
