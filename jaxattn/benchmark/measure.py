"""How comparisons are timed: candidates take turns, and the median of each one's times counts."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# A candidate runs for so many seconds before a run counts: the previous one's threads spin for up to 15 ms while they
# wait for more work (libgomp's, which PyTorch uses, on some processors), and would take its cores.
SETTLING = 0.03
Row = dict[str, Any]


class Candidate(NamedTuple):
    """One way to compute something.

    Args:
        name: the implementation.
        run: computes it and waits for the result.
        compared: picks the part of the result that all candidates share.
        compile_seconds: how long compiling took.
        deterministic: False where results are random, as with dropout, and therefore not compared.
    """

    name: str
    run: Callable[[], Any]
    compared: Callable[[Any], Any] = lambda result: result
    compile_seconds: float = 0.0
    deterministic: bool = True


class Comparison(NamedTuple):
    """Candidates for the same work, ours first.

    Args:
        group: what is compared, such as "attention".
        setting: fields for every row: the direction, the mask, the sizes.
        candidates: the candidates.
        tolerance: the largest relative difference from the first candidate's result.
        repeats: how often one run does the work.
        operations: multiplications and additions of the work, where they are counted.
        tokens: tokens that the work processes, where they are counted.
    """

    group: str
    setting: Row
    candidates: Sequence[Candidate]
    tolerance: float = 1e-4
    repeats: int = 1
    operations: float | None = None
    tokens: int | None = None


def compiled(name: str, function: Callable, *arguments: Any, compared: Callable[[Any], Any] = lambda r: r) -> Candidate:
    """Compile a JAX function into a candidate, so that runs are not charged for compiling."""
    start = time.perf_counter()
    executable = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    return Candidate(name, lambda: jax.block_until_ready(executable(*arguments)), compared, seconds)


def measure(comparison: Comparison, seconds: float) -> Iterator[Row]:
    """Check that the candidates agree, time them for about so many seconds, and yield one row for each.

    Raises:
        ValueError: a candidate's result differs from the first one's.
    """
    candidates = comparison.candidates
    differences = check_agreement([c for c in candidates if c.deterministic], comparison.tolerance)
    medians = interleaved_medians(candidates, seconds)
    for candidate in candidates:
        row = {
            **comparison.setting,
            "group": comparison.group,
            "name": candidate.name,
            "seconds": medians[candidate.name] / comparison.repeats,
            "relative": medians[candidate.name] / medians[candidates[0].name],
            "compile_seconds": candidate.compile_seconds,
            "difference": differences.get(candidate.name),
        }
        if comparison.operations is not None:
            row["gflops"] = comparison.operations / row["seconds"] / 1e9
        if comparison.tokens is not None:
            row["tokens_per_second"] = comparison.tokens / row["seconds"]
        yield row


def check_agreement(candidates: Sequence[Candidate], tolerance: float) -> dict[str, float]:
    """Return each candidate's largest difference from the first, relative to the first's largest number.

    Raises:
        ValueError: a difference exceeds the tolerance; a wrong result is not worth timing.
    """
    differences: dict[str, float] = {}
    expected: list[np.ndarray] = []
    for candidate in candidates:
        actual = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(candidate.compared(candidate.run()))]
        expected = expected or actual
        # NumPy's maximum propagates NaN, Python's may lose it.
        difference = np.max([_relative_difference(a, b) for a, b in zip(actual, expected, strict=True)])
        if not difference <= tolerance:
            raise ValueError(f"{candidate.name} differs from {candidates[0].name} by {difference:.1e}, not timed")
        differences[candidate.name] = float(difference)
    return differences


def interleaved_medians(candidates: Sequence[Candidate], seconds: float) -> dict[str, float]:
    """Run the candidates in turn for about so many seconds, at least three rounds; return each one's median seconds.

    A machine's speed drifts, and taking turns exposes all candidates to the same drift. In each turn the last run
    counts: by then the caches are the candidate's own, and the previous candidate's threads are asleep.
    """
    times: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    end = time.perf_counter() + seconds
    while min(map(len, times.values())) < 3 or time.perf_counter() < end:
        for candidate in candidates:
            times[candidate.name].append(_settled_time(candidate))
    return {name: statistics.median(each) for name, each in times.items()}


def matmul_size(dtype: str) -> int:
    """Return the size of the matrices that are multiplied; CPUs multiply float16 very slowly."""
    return 256 if dtype == "float16" else 2048


def matmul_rate(dtype: str = "float32") -> float:
    """Measure XLA's matrix products in GFLOP/s, which bounds everything else here."""
    size = matmul_size(dtype)
    matrix = jnp.ones((size, size), dtype)
    seconds = interleaved_medians([compiled("matmul", jnp.matmul, matrix, matrix)], 1.0)["matmul"]
    return 2 * size**3 / seconds / 1e9


def _settled_time(candidate: Candidate) -> float:
    turn_began = time.perf_counter()
    while True:
        settled = time.perf_counter() - turn_began >= SETTLING
        start = time.perf_counter()
        candidate.run()
        duration = time.perf_counter() - start
        # A long run need not be repeated: what disturbs its beginning does not matter.
        if settled or duration > 1:
            return duration


def _relative_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    largest = np.maximum(np.abs(expected).max(initial=0), 1e-30)
    return float(np.abs(actual - expected).max(initial=0) / largest)
