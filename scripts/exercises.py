"""Learn attention by writing it: `jaxattn exercises`, from a clone."""

import sys

from jaxattn.cli import main

if __name__ == "__main__":
    sys.exit(main(["exercises", *sys.argv[1:]]))
