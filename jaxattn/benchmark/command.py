"""The command `jaxattn benchmark`: measure what was asked for, and print and keep each row as it comes."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from jaxattn.benchmark.attention import compare_attention
from jaxattn.benchmark.cases import Case
from jaxattn.benchmark.decoding import compare_decoding
from jaxattn.benchmark.layers import compare_layers
from jaxattn.benchmark.machine import describe_machine
from jaxattn.benchmark.measure import Comparison, Row, matmul_rate, measure
from jaxattn.benchmark.memory import extra_memory
from jaxattn.benchmark.options import check, parser
from jaxattn.benchmark.peers import torch_matmul_rate
from jaxattn.benchmark.plot import plot
from jaxattn.benchmark.report import heading, line, markdown, write_json
from jaxattn.benchmark.scaling_report import run_scaling
from jaxattn.benchmark.score_options import option_comparisons
from jaxattn.benchmark.training import compare_training
from jaxattn.cli import run_command
from jaxattn.files import write_whole
from jaxattn.training.devices import use_all_cores
from jaxattn.training.memory import total_memory
from jaxattn.training.progress import say


def main(argv: Sequence[str] | None = None) -> int:
    """Run; return the exit status."""
    return run_command("benchmark", lambda: run(parser().parse_args(argv)))


def run(options: argparse.Namespace) -> int:
    """Measure, and print and keep each row as it comes."""
    check(options)
    if options.only == "scaling":
        return run_scaling(options)
    if options.only == "training":
        use_all_cores()
    machine, rates = describe_machine(), matmul_rates(options.dtype)
    rate, rows = max(rates.values()), list[Row]()
    report, title = {"machine": machine, "matmul_gflops": rate, "matmul_rates": rates, "rows": rows}, ""
    say("  ".join(f"{name} {value}" for name, value in machine.items()))
    for name, each in rates.items():
        say(f"{options.dtype} matrix products run at {each:.0f} GFLOP/s in {name}")
    for row in measure_all(options):
        if "gflops" in row:
            row["of_matmul"] = row["gflops"] / rate
        rows.append(row)
        if heading(row) != title:
            title = heading(row)
            say(f"\n{title}")
        say(line(row))
        keep(options, report)
    if options.plot is not None:
        plot(attention_rows(rows), options.plot)
    return 0


def matmul_rates(dtype: str) -> dict[str, float]:
    """Measure the matrix products of XLA and, where it is installed, of PyTorch, in GFLOP/s; the best is the floor."""
    of_torch = torch_matmul_rate(dtype)
    return {"XLA": matmul_rate(dtype)} | ({} if of_torch is None else {"torch": of_torch})


def measure_all(options: argparse.Namespace) -> Iterator[Row]:
    """Measure all comparisons, and with --memory attention's memory."""
    for comparison in comparisons(options):
        for row in measure(comparison, options.seconds):
            if options.memory and row["group"] == "attention":
                fields = {name: row[name] for name in ("mask", "B", "T", "H", "D", "dtype")}
                case = Case(**fields, keys=options.keys, backward=row["direction"] != "forward")
                row["bytes"] = extra_memory(row["name"], case)
            yield row


def comparisons(options: argparse.Namespace) -> Iterator[Comparison]:
    """Prepare the comparisons that were asked for, one by one."""
    if options.only == "decoding":
        for batch_size in options.batch_sizes or [1, 4]:
            yield from compare_decoding(batch_size)
    elif options.only == "training":
        yield compare_training()
    elif options.only == "options":
        yield from option_comparisons(cases(options))
    else:
        for case in cases(options):
            if options.only != "stages":
                for mask in options.masks:
                    yield compare_attention(case._replace(mask=mask), options.implementations, total_memory() / 2)
            if options.only != "attention":
                yield from compare_layers(case)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """List the directions and sizes, each with the first mask."""
    for direction in options.directions:
        for T in options.lengths:
            for B in options.batch_sizes or [32 if T <= 256 else 1]:
                case = Case(options.masks[0], B, T, options.heads, options.head_width, direction != "forward")
                yield case._replace(keys=options.keys, dtype=options.dtype)


def keep(options: argparse.Namespace, report: dict[str, Any]) -> None:
    """Write the figures so far to the files that were asked for."""
    if options.json is not None:
        write_json(report, options.json)
    if options.markdown is not None:
        write_whole(options.markdown, markdown(attention_rows(report["rows"])).encode("utf-8"))


def attention_rows(rows: list[Row]) -> list[Row]:
    """Pick the rows of attention alone."""
    return [row for row in rows if row["group"] == "attention"]
