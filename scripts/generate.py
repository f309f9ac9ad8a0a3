"""Sample text from a model that `train.py --out DIR` saved."""

import argparse
import sys

import jax
import numpy as np

from jaxattn import generate
from jaxattn.training.progress import printable, say
from jaxattn.training.saving import load_model


def main() -> int:
    """Run; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", metavar="DIR", help="what train.py --out DIR saved")
    parser.add_argument("--prompt", default="\n", help="text to continue (default: a new line)")
    parser.add_argument("--tokens", type=int, default=300, metavar="N", help="bytes to add (default: 300)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        metavar="X",
        help="below 1 tamer, 0 always the likeliest (default: 0.8)",
    )
    parser.add_argument("--top-k", type=int, metavar="N", help="draw from the N likeliest bytes alone (default: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same text (default: 0)")
    options = parser.parse_args()
    try:
        model, params = load_model(options.directory)
        prompt = np.frombuffer(options.prompt.encode("utf-8", errors="surrogateescape"), np.uint8)
        tokens = generate(
            model,
            params,
            prompt,
            options.tokens,
            key=jax.random.key(options.seed),
            temperature=options.temperature,
            top_k=options.top_k,
        )
        say(printable([*prompt, *np.asarray(tokens)]))
    except (OSError, ValueError, ImportError) as error:
        print(f"generate.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("generate.py: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
