"""What `--only scaling` prints: the model of large machines, its check on this one, and counts on virtual devices."""

import argparse
from collections.abc import Iterator

from jaxattn.benchmark import paper_scale
from jaxattn.benchmark.machine import count_cores, describe_machine
from jaxattn.benchmark.measure import Row
from jaxattn.benchmark.report import table_head, table_line, write_json
from jaxattn.benchmark.scaling import scaling_rows, use_virtual_devices
from jaxattn.benchmark.scaling_check import check_rows
from jaxattn.files import write_whole
from jaxattn.training.progress import say

COUNTS = ("split", "devices", "sent", "on paper", "products", "tiles", "most / mean", "memory")
CHECK = ("devices", "B", "T", "width", "layers", "GFLOP/s", "GB/s", "predicted", "measured", "predicted / measured")


def run_scaling(options: argparse.Namespace) -> int:
    """Print the tables line by line, and keep the figures that were asked for."""
    use_virtual_devices()
    machine, lines, rows = describe_machine(), list[str](), list[Row]()
    for line in _lines(options.seconds, rows):
        say(line)
        lines.append(line)
        if options.json is not None:
            write_json({"machine": machine, "rows": rows}, options.json)
        if options.markdown is not None:
            write_whole(options.markdown, "\n".join(lines).encode("utf-8"))
    return 0


def _lines(seconds: float, rows: list[Row]) -> Iterator[str]:
    yield "A step on H100s, on paper: a GPT of 1.3 billion parameters in bfloat16, one sequence for each copy\n"
    yield from paper_scale.table()
    yield "\nThe same model with this machine's rates, beside measured steps in float32\n"
    yield from table_head(*CHECK)
    for row in check_rows(tuple(n for n in (1, 2) if n <= count_cores()), seconds):
        rows.append(row)
        yield _check_line(row)
    for scaling in ("strong", "weak"):
        yield f"\nOne of n devices in a training step, {scaling} scaling, from the compiled program\n"
        yield from table_head(*COUNTS)
        for row in scaling_rows(scaling):
            rows.append(row)
            yield _counts_line(row)


def _counts_line(row: Row) -> str:
    sent, paper = row["bytes_sent"], row["bytes_on_paper"]
    return table_line(
        row["split"], row["devices"], f"{sent / 1e6:.1f} MB", f"{paper / 1e6:.1f} MB",
        f"{row['operations'] / 1e9:.1f} GFLOP", f"{row['tiles']:,.0f}", f"{row['imbalance']:.2f}",
        f"{row['memory'] / 1e6:,.0f} MB",
    )  # fmt: skip


def _check_line(row: Row) -> str:
    return table_line(
        row["devices"], row["batch_size"], row["T"], row["heads"] * row["head_width"], row["layers"],
        f"{row['products'] / 1e9:.0f}", f"{row['memory'] / 1e9:.1f}", f"{1e3 * row['predicted']:.3g} ms",
        f"{1e3 * row['measured']:.3g} ms", f"{row['predicted'] / row['measured']:.2f}",
    )  # fmt: skip
