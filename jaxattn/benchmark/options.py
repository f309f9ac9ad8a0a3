"""Time attention beside other libraries on this machine, after checking that all compute the same numbers.

Groups: "attention" is attention alone, from projected heads to context vectors, beside jax.nn, Flax Linen and NNX, and,
where installed (extras "bench" and "torch"), Equinox, tokamax and PyTorch; "stages" are whole layers, beside Flax's;
"decoding", when asked for, is GPT-2 small and a Llama of 4 layers beside transformers (extra "peers"), "training" are
steps of a small GPT beside nanoGPT in PyTorch (extra "torch"), "options" is causal attention with a soft cap, sinks,
ALiBi's and T5's bias beside plain calls and PyTorch, and "scaling" counts what a step sends, computes and stores on
eight virtual devices, and estimates it on H100s. Candidates take turns, and the median of each one's times counts. "of
matmul" is the rate of the operations that the mask leaves, relative to the rate of plain matrix products in the same
run; the last column is the time relative to jaxattn's.
"""

import argparse
from pathlib import Path
from typing import get_args

from jaxattn.benchmark.cases import MASKS
from jaxattn.benchmark.plot import check_plot_file
from jaxattn.cli import Parser, check_number
from jaxattn.files import check_output
from jaxattn.kernels.call import Implementation
from jaxattn.training.memory import total_memory

GROUPS = ("attention", "stages", "decoding", "training", "options", "scaling")
DTYPES = ("float32", "bfloat16", "float16")
DIRECTIONS = ("forward", "forward+backward")


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    new = Parser(prog="jaxattn benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = new.add_argument
    kernels = get_args(Implementation)
    add("--only", choices=GROUPS, help="one group (default: the first two)")
    add("--lengths", type=int, nargs="+", default=[128, 512, 2048], metavar="T", help="tokens (default: 128 512 2048)")
    add("--batch-sizes", type=int, nargs="+", metavar="B", help="sequences (default: 32 up to 256 tokens, else 1; "
        "of decoding 1 and 4)")  # fmt: skip
    add("--heads", type=int, default=8, metavar="H", help="number of heads (default: 8)")
    add("--head-width", type=int, default=64, metavar="D", help="width of each head (default: 64)")
    add("--masks", choices=MASKS, nargs="+", default=["causal"], help="masks for attention alone (default: causal)")
    add("--implementations", choices=kernels, nargs="+", default=["blockwise", "dense"], help="our kernels to time by "
        "name, beside the one that is chosen (default: blockwise dense)")  # fmt: skip
    add("--keys", type=int, metavar="S", help="keys, for attention alone, where there are not as many as queries")
    add("--dtype", choices=DTYPES, default="float32", help="of attention alone (default: float32)")
    add("--directions", choices=DIRECTIONS, nargs="+", default=DIRECTIONS, help="(default: both)")
    add("--seconds", type=float, default=2.0, metavar="S", help="for each comparison, at least 3 rounds (default: 2)")
    add("--memory", action="store_true", help="measure each candidate's peak memory too, each in its own process")
    add("--json", type=Path, metavar="FILE", help="write all figures to this file")
    add("--markdown", type=Path, metavar="FILE", help="write attention's figures to this file, as tables")
    add("--plot", type=Path, metavar="FILE", help="draw attention's time and memory over length (.png, .svg, .pdf)")
    return new


def check(options: argparse.Namespace) -> None:
    """Refuse options that cannot work before anything is measured."""
    lists = {"--lengths": options.lengths, "--batch-sizes": options.batch_sizes or []}
    for name, numbers in (lists | {"--heads": [options.heads], "--head-width": [options.head_width]}).items():
        for number in numbers:
            check_number(name, number, 1)
    if options.keys is not None:  # fewer keys than queries would leave queries without any
        check_number("--keys", options.keys, max(options.lengths))
    check_number("--seconds", options.seconds, 0, 24 * 60 * 60)
    files = {name: getattr(options, name) for name in ("json", "markdown", "plot") if getattr(options, name)}
    for name, file in files.items():
        check_output(f"--{name}", file)
    if len({file.absolute() for file in files.values()}) < len(files):
        raise ValueError(f"--{' and --'.join(files)} name one file: name one for each")
    if options.only in (None, "attention", "stages", "options"):
        _check_memory(options)
    if options.plot is not None:
        check_plot_file(options.plot)


def _check_memory(options: argparse.Namespace) -> None:
    """Check that query, key, value and output of the largest case are in memory together."""
    sizes = [(max(options.batch_sizes or [32 if T <= 256 else 1]), T) for T in options.lengths]
    B, T = max(sizes, key=lambda size: size[0] * size[1])
    needed = 4 * 4 * B * max(T, options.keys or 0) * options.heads * options.head_width
    if needed > total_memory():
        raise ValueError(
            f"B={B} T={T} H={options.heads} D={options.head_width} needs {needed / 1e9:,.0f} GB of memory, but there "
            f"are {total_memory() / 1e9:,.0f} GB: write smaller --lengths, --batch-sizes, --heads or --head-width"
        )
