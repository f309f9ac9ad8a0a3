"""Time attention beside other libraries: `jaxattn benchmark`, from a clone."""

import sys

from jaxattn.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
