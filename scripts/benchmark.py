"""Time attention beside other libraries: `jaxattn benchmark`, from a clone."""

import sys

from jaxattn.benchmark.command import main

if __name__ == "__main__":
    sys.exit(main())
