"""Time attention side by side with its peers on this machine, after checking that all give the same numbers.

Candidates run in turn and each one's median counts. Figures are milliseconds; the last column is relative to ours.
"""

import argparse
import json
import sys

from jaxattn.benchmark.layers import layer_groups
from jaxattn.benchmark.measure import check_agreement, interleaved_medians, machine, matmul_rate
from jaxattn.training.progress import say

TOLERANCE = 1e-4


def main() -> int:
    """Run; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[128, 512, 1024], metavar="T", help="tokens (default: 128 512 1024)"
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], metavar="B", help="(default: 1 8)")
    parser.add_argument("--heads", type=int, default=8, metavar="H", help="heads (default: 8)")
    parser.add_argument("--head-width", type=int, default=64, metavar="D", help="width of a head (default: 64)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        metavar="S",
        help="time for each comparison, at least 3 rounds (default: 2)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures here as well")
    options = parser.parse_args()
    try:
        report = measure(options)
        if options.json:
            with open(options.json, "w") as file:
                json.dump(report, file, indent=1)
    except (OSError, ValueError, ImportError) as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmark.py: interrupted", file=sys.stderr)
        return 130
    return 0


def measure(options: argparse.Namespace) -> dict:
    """Time everything that was asked for, print it as it comes, and return it."""
    if min([*options.lengths, *options.batch_sizes, options.heads, options.head_width]) < 1:
        raise ValueError("--lengths, --batch-sizes, --heads and --head-width must be at least 1")
    report = {"machine": machine(), "matmul_gflops": matmul_rate(), "rows": []}
    say("  ".join(f"{name} {value}" for name, value in report["machine"].items()))
    say(f"float32 matrix products run at {report['matmul_gflops']:.0f} GFLOP/s")
    for direction in ("forward", "forward+backward"):
        for batch in options.batch_sizes:
            for length in options.lengths:
                shape = {"T": length, "B": batch, "H": options.heads, "D": options.head_width}
                say(f"\n{direction}, " + " ".join(f"{letter}={size}" for letter, size in shape.items()))
                groups = layer_groups(batch, length, options.heads, options.head_width, direction != "forward")
                for group, candidates in groups.items():
                    check_agreement(candidates, TOLERANCE)
                    seconds = interleaved_medians(candidates, options.seconds)
                    ours = seconds[candidates[0].name]
                    for name, median in seconds.items():
                        say(f"  {group:28} {name:20} {1e3 * median:10.3f} ms {median / ours:8.2f} ×")
                        row = {"direction": direction, **shape, "group": group, "name": name, "seconds": median}
                        report["rows"].append(row)
    return report


if __name__ == "__main__":
    sys.exit(main())
