"""The rows of a run as lines on the terminal, as JSON and as tables in Markdown."""

import json
from pathlib import Path
from typing import Any

from jaxattn.benchmark.measure import Row
from jaxattn.files import write_whole


def heading(row: Row) -> str:
    """Say what the rows below have in common: the direction and the sizes."""
    sizes = " ".join(f"{letter}={row[letter]}" for letter in "BTHD" if letter in row)
    return f"{row.get('direction', row['group'])}, {sizes}"


def line(row: Row) -> str:
    """Lay out one row for the terminal."""
    group = f"{row['group']}, {row['mask']}" if "mask" in row else row["group"]
    parts = [f"  {group:24} {row['name']:24} {1e3 * row['seconds']:10.3f} ms"]
    if "gflops" in row:
        parts.append(f"{row['gflops']:7.1f} GFLOP/s {row['of_matmul']:5.0%} of matmul")
    if "tokens_per_second" in row:
        parts.append(f"{row['tokens_per_second']:10,.1f} tokens/s")
    if row["compile_seconds"]:
        parts.append(f"compiled in {row['compile_seconds']:4.1f} s")
    if row.get("bytes") is not None:
        parts.append(f"{row['bytes'] / 2**20:6.0f} MB")
    return "  ".join([*parts, f"{row['relative']:6.2f} ×"])


def write_json(report: dict[str, Any], file: Path) -> None:
    """Write the machine and all rows.

    Raises:
        OSError: the file cannot be written.
    """
    write_whole(file, json.dumps(report, indent=1).encode())


def table_line(*entries: Any) -> str:
    """Write a line of a table in Markdown."""
    return "| " + " | ".join(map(str, entries)) + " |"


def table_head(*columns: Any) -> list[str]:
    """Write the first two lines of a table in Markdown."""
    return [table_line(*columns), "| --- " * len(columns) + "|"]


def markdown(rows: list[Row]) -> str:
    """Lay out the rows of attention: a table for each direction and mask, with times relative to ours.

    One line is one length, one column one candidate.
    """
    lines = []
    for direction, mask in dict.fromkeys((row["direction"], row["mask"]) for row in rows):
        table = [row for row in rows if (row["direction"], row["mask"]) == (direction, mask)]
        names = list(dict.fromkeys(row["name"] for row in table))
        lines += table_head(f"{direction}, {mask}", *names)
        for T, B in dict.fromkeys((row["T"], row["B"]) for row in table):
            by_name = {row["name"]: row for row in table if (row["T"], row["B"]) == (T, B)}
            entries = [_entry(by_name.get(name), by_name["jaxattn"]) for name in names]
            label = f"T={T}" + (f", B={B}" if B > 1 else "")
            lines.append(table_line(label, *entries))
        lines.append("")
    return "\n".join(lines)


def _entry(row: Row | None, ours: Row) -> str:
    if row is None:
        return "–"
    seconds = row["seconds"]
    time = f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
    ratio = "" if row is ours else f" ({seconds / ours['seconds']:.2f} ×)"
    memory = f", {row['bytes'] / 2**20:.0f} MB" if row.get("bytes") else ""
    return time + ratio + memory
