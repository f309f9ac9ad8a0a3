"""Continue a text with a trained model: the same as the command `jaxattn generate`."""

import sys

from jaxattn.models.command import main

if __name__ == "__main__":
    sys.exit(main())
