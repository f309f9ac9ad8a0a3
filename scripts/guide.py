"""Make the page that shows every number of attention: `jaxattn guide`, from a clone."""

import sys

from jaxattn.guide.command import main

if __name__ == "__main__":
    sys.exit(main())
