"""Make a page that shows every number of the four stages of attention, on the book's sentence or your own.

The page is a single file that needs no network. Exit status: 0 it is there, 2 something was wrong.
"""

import argparse
import sys
from pathlib import Path

from jaxattn.guide.page import render_page
from jaxattn.guide.plots import plot_matrix, plot_trace, save_plots
from jaxattn.guide.story import MOST, Story, book_story, drawn_story, run_story, stages_of
from jaxattn.guide.trace import trace
from jaxattn.training.progress import say
from jaxattn.training.saving import write_whole


def main() -> int:
    """Run; return the exit status."""
    options = parser().parse_args()
    try:
        if not 0 <= options.seed < 2**32:
            raise ValueError(f"--seed is {options.seed}, but must be from 0 to {2**32 - 1}")
        out = Path(options.out)
        if options.plots is None and (out.is_dir() or not out.parent.is_dir()):
            raise ValueError(f"--out {options.out} is no file in a folder that exists: write --out guide.html, say")
        if options.text is not None:
            options.text = options.text.encode("utf-8", errors="replace").decode("utf-8")
        most = MOST if options.plots is None else None
        if options.run is not None:
            story = run_story(options.run, options.text, options.seed, most)
        elif options.text is not None:
            story = drawn_story(options.text, options.seed, most)
        else:
            story = book_story()
        if options.plots is not None:
            say(f"{options.plots}: {draw(story, Path(options.plots))} figures")
        else:
            write_whole(out, render_page(story).encode("utf-8"))
            say(f"{options.out}: open it in a browser")
    except (OSError, ValueError, ImportError) as error:
        print(f"guide.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("guide.py: interrupted", file=sys.stderr)
        return 130
    return 0


def draw(story: Story, directory: Path) -> int:
    """Draw every matrix of the four stages, and of a trained model's layers; return how many figures there are."""
    figures = {}
    for name, module, variables in stages_of(story):
        steps = trace(module, variables, story.inputs)
        figures |= {f"{name}_{array}": figure for array, figure in plot_trace(steps, story.tokens).items()}
    for layer, steps in enumerate(story.layers):
        for array in ("masked", "weights"):
            title, kind = f"layer {layer}: {array}", "weights" if array == "weights" else "scores"
            options = {"title": title, "kind": kind, "mask": steps["mask"], "axes": ("query", "key")}
            figures[f"trained_{layer}_{array}"] = plot_matrix(steps[array], story.tokens, story.tokens, **options)
    save_plots(figures, directory)
    return len(figures)


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    new = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = new.add_argument
    add("--text", metavar="TEXT", help="a sentence of 2 to 24 words (default: the book's, with the book's numbers)")
    add("--seed", type=int, default=0, metavar="N", help="draws vectors and weights for a text (default: 0)")
    add("--run", metavar="DIR", help="show the attention of a model that train.py --out DIR saved")
    add("--plots", metavar="DIR", help="draw every matrix as PNG, SVG and PDF instead, of texts of any length")
    add("--out", default="guide.html", metavar="FILE", help="the page (default: guide.html)")
    return new


if __name__ == "__main__":
    sys.exit(main())
