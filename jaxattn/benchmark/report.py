"""The figures of a run as a table in Markdown and as a picture."""

from pathlib import Path
from typing import Any

from jaxattn.extras import require


def markdown(rows: list[dict[str, Any]]) -> str:
    """Lay out attention's rows: one line for each length, one column for each candidate, times relative to ours."""
    lines = []
    for direction, kind in dict.fromkeys((row["direction"], row["mask"]) for row in rows):
        chosen = [row for row in rows if (row["direction"], row["mask"]) == (direction, kind)]
        names = list(dict.fromkeys(row["name"] for row in chosen))
        lines += [f"| {direction}, {kind} | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
        for length, batch in dict.fromkeys((row["T"], row["B"]) for row in chosen):
            of = {row["name"]: row for row in chosen if (row["T"], row["B"]) == (length, batch)}
            label = f"T={length}" + (f", B={batch}" if batch > 1 else "")
            lines.append(f"| {label} | " + " | ".join(_cell(of.get(name), of["jaxattn"]) for name in names) + " |")
        lines.append("")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], file: str) -> None:
    """Draw time, and memory where it was measured, over the length, both axes logarithmic.

    Raises:
        ImportError: matplotlib is missing.
        OSError: the file cannot be written.
        ValueError: the file's ending names no format.
    """
    pyplot = require("matplotlib.pyplot", extra="bench")
    formats = pyplot.figure().canvas.get_supported_filetypes()
    pyplot.close("all")
    if Path(file).suffix[1:] not in formats:
        raise ValueError(f"{file} must end in a format's name: write {Path(file).stem}.png, .svg or .pdf")
    panels = list(dict.fromkeys((row["direction"], row["mask"]) for row in rows))
    if not panels:
        return
    measures = {"seconds": "seconds"} | ({"bytes": "extra bytes at the peak"} if any(map(_bytes, rows)) else {})
    size = (4.5 * len(panels), 3.6 * len(measures))
    figure, axes = pyplot.subplots(len(measures), len(panels), figsize=size, squeeze=False, sharex=True)
    for line, (measure, words) in zip(axes, measures.items(), strict=True):
        for axis, (direction, kind) in zip(line, panels, strict=True):
            for number, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
                points = sorted(
                    (row["T"], row[measure])
                    for row in rows
                    if (row["name"], row["direction"], row["mask"]) == (name, direction, kind) and row.get(measure)
                )
                axis.plot([T for T, _ in points], [n for _, n in points], "o-", color=f"C{number}", label=name)
            axis.set(yscale="log", xlabel="tokens", ylabel=words, title=f"{direction}, {kind}")
            axis.set_xscale("log", base=2)
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(Path(file), dpi=150)
    pyplot.close(figure)


def _bytes(row: dict[str, Any]) -> bool:
    return bool(row.get("bytes"))


def _cell(row: dict[str, Any] | None, ours: dict[str, Any]) -> str:
    if row is None:
        return "–"
    seconds = row["seconds"]
    time = f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
    ratio = "" if row is ours else f" ({seconds / ours['seconds']:.2f} ×)"
    memory = f", {row['bytes'] / 2**20:.0f} MB" if row.get("bytes") else ""
    return time + ratio + memory
