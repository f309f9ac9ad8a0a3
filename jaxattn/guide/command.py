"""Make a page that shows every number of the four stages of attention, on the book's sentence or your own.

The page is a single file that needs no network. Exit status: 0 the page is written, 2 something was wrong.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jaxattn.cli import MAX_SEED, Parser, check_number, run_command
from jaxattn.files import check_output, write_whole
from jaxattn.guide.gpt2 import gpt2_story
from jaxattn.guide.page import render_page
from jaxattn.guide.plots import plot_story, save_plots
from jaxattn.guide.story import MAX_TOKENS, Story, book_story, random_story
from jaxattn.guide.trained import trained_story
from jaxattn.training.progress import say
from jaxattn.training.saving import prepare_directory


def main(argv: Sequence[str] | None = None) -> int:
    """Run; return the exit status."""
    return run_command("guide", lambda: make_guide(parser().parse_args(argv)))


def make_guide(options: argparse.Namespace) -> int:
    """Write the page or the plots."""
    check(options)
    story = make_story(options)
    if options.plots is not None:
        say(f"{options.plots}: {len(save_plots(plot_story(story), options.plots)) // 3} figures")
    else:
        write_whole(options.out, render_page(story).encode("utf-8"))
        say(f"{options.out}: open it in a browser")
    return 0


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    new = Parser(prog="jaxattn guide", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = new.add_argument
    add("--text", metavar="TEXT", help="a sentence of 2 to 24 words (default: the book's, with the book's numbers)")
    add("--seed", type=int, default=0, metavar="N", help="seed of a text's random vectors and weights (default: 0)")
    add("--run", metavar="DIR", help="show the attention of a model that `train --out DIR` saved")
    add("--gpt2", metavar="DIR", help="show the heads of a GPT-2: a directory with config.json, tokenizer.json and "
        "model.safetensors")  # fmt: skip
    add("--plots", type=Path, metavar="DIR", help="save every matrix as PNG, SVG and PDF instead, for texts of any "
        "length")  # fmt: skip
    add("--out", type=Path, default=Path("guide.html"), metavar="FILE", help="the page (default: guide.html)")
    return new


def check(options: argparse.Namespace) -> None:
    """Refuse options that cannot work before anything is computed."""
    check_number("--seed", options.seed, 0, MAX_SEED)
    if options.gpt2 is not None and (options.run is not None or options.plots is not None):
        other = "--run" if options.run is not None else "--plots"
        raise ValueError(f"--gpt2 shows another model, on the page: leave {other} out")
    if options.plots is None:
        check_output("--out", options.out)
    else:
        prepare_directory(options.plots, "--plots")


def make_story(options: argparse.Namespace) -> Story:
    """Choose the sentence and the numbers of its vectors and weights."""
    max_tokens = MAX_TOKENS if options.plots is None else None
    # Arguments may hold bytes that are not UTF-8.
    text = None if options.text is None else options.text.encode("utf-8", errors="replace").decode("utf-8")
    if options.gpt2 is not None:
        return gpt2_story(options.gpt2, text, options.seed)
    if options.run is not None:
        return trained_story(options.run, text, options.seed, max_tokens)
    return book_story() if text is None else random_story(text, options.seed, max_tokens)
