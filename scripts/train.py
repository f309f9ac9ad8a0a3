"""Train a small GPT: `jaxattn train`, from a clone."""

import sys

from jaxattn.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
