"""Continue a text with a trained model: `jaxattn generate`, from a clone."""

import sys

from jaxattn.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
