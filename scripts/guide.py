"""Make the page that shows every number of attention: `jaxattn guide`, from a clone."""

import sys

from jaxattn.cli import main

if __name__ == "__main__":
    sys.exit(main(["guide", *sys.argv[1:]]))
