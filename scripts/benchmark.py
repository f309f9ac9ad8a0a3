"""Time attention side by side with its peers on this machine, after checking that all give the same numbers.

Groups: "attention" is attention alone, from projected heads to context vectors, beside jax.nn, Flax Linen and NNX, and,
where installed (extras "bench" and "torch"), Equinox, tokamax and PyTorch; "stages" are whole layers, beside Flax's;
"decoding", when asked for, is GPT-2 small beside transformers (extra "peers"), and "training" are steps of a small GPT
beside nanoGPT in PyTorch (extra "torch"). Candidates run in turn and each one's
median counts. "of matmul" relates the operations that the mask leaves to the rate of plain matrix products, measured in
the same run; the last column is the time relative to ours.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator

from jaxattn.benchmark.decoding import SMALL, decoding_candidates
from jaxattn.benchmark.layers import layer_groups
from jaxattn.benchmark.measure import check_agreement, interleaved_medians, machine, matmul_rate
from jaxattn.benchmark.memory import extra_memory
from jaxattn.benchmark.peers import MASKS, candidates, operations
from jaxattn.benchmark.report import markdown, plot
from jaxattn.benchmark.training import BATCH, SHAPE, STEPS, training_candidates
from jaxattn.training.devices import use_all_cores
from jaxattn.training.progress import say

# After a few steps of AdamW, which divides small gradients by their own size, rounding has grown.
TOLERANCE, TRAINING_TOLERANCE = 1e-4, 1e-3
DIRECTIONS = ("forward", "forward+backward")


def main() -> int:
    """Run; return the exit status."""
    options = parser().parse_args()
    try:
        check(options)
        if options.only == "training":
            use_all_cores()
        report = {"machine": machine(), "matmul_gflops": matmul_rate(), "rows": []}
        say("  ".join(f"{name} {value}" for name, value in report["machine"].items()))
        say(f"float32 matrix products run at {report['matmul_gflops']:.0f} GFLOP/s")
        special = {"decoding": decode, "training": train}.get(options.only)
        for row in special(options) if special else measure(options, report["matmul_gflops"]):
            report["rows"].append(row)
            keep(options, report)
        if options.plot:
            plot([row for row in report["rows"] if row["group"] == "attention"], options.plot)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmark.py: interrupted; what was measured so far is kept", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    new = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = new.add_argument
    add("--only", choices=("attention", "stages", "decoding", "training"), help="one group (default: the first two)")
    add("--lengths", type=int, nargs="+", default=[128, 512, 2048], metavar="T", help="tokens (default: 128 512 2048)")
    add("--batch-sizes", type=int, nargs="+", metavar="B", help="sequences (default: 32 up to 256 tokens, else 1)")
    add("--heads", type=int, default=8, metavar="H", help="heads (default: 8)")
    add("--head-width", type=int, default=64, metavar="D", help="width of a head (default: 64)")
    add("--masks", choices=MASKS, nargs="+", default=["causal"], help="masks for attention alone (default: causal)")
    add("--directions", choices=DIRECTIONS, nargs="+", default=DIRECTIONS, help="(default: both)")
    add("--seconds", type=float, default=2.0, metavar="S", help="for each comparison, at least 3 rounds (default: 2)")
    add("--memory", action="store_true", help="measure each candidate's peak memory too, in a process of its own")
    add("--json", metavar="FILE", help="write the figures here as well")
    add("--markdown", metavar="FILE", help="write attention's figures here as tables")
    add("--plot", metavar="FILE", help="draw attention's time and memory over the length (.png, .svg, .pdf)")
    return new


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot be measured or kept before anything is."""
    if min([*options.lengths, *(options.batch_sizes or [1]), options.heads, options.head_width]) < 1:
        raise ValueError("--lengths, --batch-sizes, --heads and --head-width must be at least 1")
    for name in ("json", "markdown", "plot"):
        file = getattr(options, name)
        if file and not os.access(os.path.dirname(os.path.abspath(file)), os.W_OK):
            raise ValueError(f"--{name} {file}: there is no such folder, or nothing can be written there")
    if options.plot:
        plot([], options.plot)


def measure(options: argparse.Namespace, matmul_gflops: float) -> Iterator[dict]:
    """Time everything that was asked for, and print and yield it as it comes."""
    for direction in options.directions:
        backward = direction != "forward"
        for length in options.lengths:
            for batch in options.batch_sizes or [32 if length <= 256 else 1]:
                shape = (batch, length, options.heads, options.head_width)
                sizes = dict(zip("BTHD", shape, strict=True))
                setting = {"direction": direction, **sizes}
                say(f"\n{direction}, " + " ".join(f"{letter}={size}" for letter, size in sizes.items()))
                for kind in options.masks if options.only != "stages" else ():
                    work = operations(kind, shape, backward)
                    for row in compare(list(candidates(kind, shape, backward, memory())), options.seconds):
                        row["gflops"] = work / row["seconds"] / 1e9
                        row["of_matmul"] = row["gflops"] / matmul_gflops
                        if options.memory:
                            row["bytes"] = extra_memory(row["name"], kind, shape, backward)
                        show(f"attention, {kind}", row)
                        yield {**setting, "group": "attention", "mask": kind, **row}
                for group, layers in layer_groups(*shape, backward).items() if options.only != "attention" else ():
                    for row in compare(layers, options.seconds):
                        show(group, row)
                        yield {**setting, "group": group, "mask": "causal", **row}


def decode(options: argparse.Namespace) -> Iterator[dict]:
    """Time the continuation of a prompt of 16 tokens by 50."""
    for batch in options.batch_sizes or [1]:
        say(f"\nGPT-2 small, B={batch}")
        for row in compare(decoding_candidates(SMALL, batch, 16, 50), options.seconds):
            row["tokens_per_second"] = 50 * batch / row["seconds"]
            say(f"  {row['name']:20} {row['tokens_per_second']:8.1f} tokens/s {row['relative']:8.2f} ×")
            yield {"group": "decoding", "B": batch, "T": 66, **row}


def train(options: argparse.Namespace) -> Iterator[dict]:
    """Time training steps, with dropout and without; with dropout no two agree, so only the others are compared."""
    plain = training_candidates(SHAPE, BATCH)
    dropping = training_candidates(dataclasses.replace(SHAPE, dropout_rate=0.1), BATCH, ", dropout 0.1")
    differences = check_agreement(plain, TRAINING_TOLERANCE)
    medians = interleaved_medians([*plain, *dropping], options.seconds)
    say(f"\nGPT of {SHAPE.num_layers} layers, width {SHAPE.features}, T={SHAPE.context_length}, B={BATCH}, AdamW")
    for name, seconds in medians.items():
        rate, relative = STEPS * BATCH * SHAPE.context_length / seconds, seconds / medians[plain[0].name]
        say(f"  {name:24} {rate:10,.0f} tokens/s {relative:8.2f} ×")
        row = {"name": name, "seconds": seconds / STEPS, "tokens_per_second": rate, "relative": relative}
        yield {"group": "training", "B": BATCH, "T": SHAPE.context_length, "difference": differences.get(name), **row}


def compare(peers: list, seconds: float) -> Iterator[dict]:
    """Check the candidates against the first, and time them."""
    differences = check_agreement(peers, TOLERANCE)
    medians = interleaved_medians(peers, seconds)
    for peer in peers:
        yield {
            "name": peer.name,
            "seconds": medians[peer.name],
            "relative": medians[peer.name] / medians[peers[0].name],
            "compile_seconds": peer.compile_seconds,
            "difference": differences[peer.name],
        }


def show(group: str, row: dict) -> None:
    """Print one line."""
    line = f"  {group:24} {row['name']:20} {1e3 * row['seconds']:10.3f} ms"
    if "gflops" in row:
        line += f" {row['gflops']:7.1f} GFLOP/s {row['of_matmul']:5.0%} of matmul"
    line += f"  compiled in {row['compile_seconds']:4.1f} s"
    if row.get("bytes") is not None:
        line += f" {row['bytes'] / 2**20:8.0f} MB"
    say(line + f" {row['relative']:8.2f} ×")


def keep(options: argparse.Namespace, report: dict) -> None:
    """Write the figures so far where they were asked for."""
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)
    if options.markdown:
        with open(options.markdown, "w") as file:
            file.write(markdown([row for row in report["rows"] if row["group"] == "attention"]))


def memory() -> float:
    """Half of this machine's memory, in bytes: candidates that would need more are left out."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2 if hasattr(os, "sysconf") else 8e9


if __name__ == "__main__":
    sys.exit(main())
