"""Train a small GPT on text, byte by byte, and see its loss on held-out text go down.

Without options it learns from the source of Python's standard library for about two minutes on a laptop's CPU; a GPU
or TPU is used where JAX finds one. Exit status: 0 the held-out loss fell, 1 it did not, 2 something was wrong with the
options or files, 130 it was interrupted (what was learned by then is saved all the same).
"""

import argparse
import sys

from jaxattn.training.config import add_options, from_options
from jaxattn.training.run import train


def main() -> int:
    """Run; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args()
    try:
        outcome = train(from_options(options))
    except (OSError, ValueError, ImportError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted before the first step; nothing was learned or saved", file=sys.stderr)
        return 130
    return 130 if outcome.interrupted else 0 if outcome.learned else 1


if __name__ == "__main__":
    sys.exit(main())
