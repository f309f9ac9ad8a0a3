"""Make a page that shows every number of the four stages of attention, on the book's sentence or your own.

The page is a single file that needs no network. Exit status: 0 it is there, 2 something was wrong.
"""

import argparse
import sys
from pathlib import Path

from jaxattn.guide.page import render_page
from jaxattn.guide.story import book_story, drawn_story, run_story
from jaxattn.training.progress import say
from jaxattn.training.saving import write_whole


def main() -> int:
    """Run; return the exit status."""
    options = parser().parse_args()
    try:
        if options.seed < 0:
            raise ValueError(f"--seed is {options.seed}, but must be at least 0")
        if options.run is not None:
            story = run_story(options.run, options.text, options.seed)
        elif options.text is not None:
            story = drawn_story(options.text, options.seed)
        else:
            story = book_story()
        write_whole(Path(options.out), render_page(story).encode("utf-8"))
    except (OSError, ValueError, ImportError) as error:
        print(f"guide.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("guide.py: interrupted; nothing was written", file=sys.stderr)
        return 130
    say(f"{options.out}: open it in a browser")
    return 0


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    new = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = new.add_argument
    add("--text", metavar="TEXT", help="a sentence of 2 to 24 words (default: the book's, with the book's numbers)")
    add("--seed", type=int, default=0, metavar="N", help="draws vectors and weights for a text (default: 0)")
    add("--run", metavar="DIR", help="show the attention of a model that train.py --out DIR saved")
    add("--out", default="guide.html", metavar="FILE", help="the page (default: guide.html)")
    return new


if __name__ == "__main__":
    sys.exit(main())
