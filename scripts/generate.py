"""Continue a text with a model that `train.py --out DIR` saved, or with a GPT-2 as Hugging Face stores it."""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxattn import load_gpt2, stream
from jaxattn.extras import require
from jaxattn.training.progress import printable, say
from jaxattn.training.saving import load_model


def main() -> int:
    """Run; return the exit status."""
    options = parser().parse_args()
    try:
        if (options.directory is None) == (options.gpt2 is None):
            raise ValueError("name one model: generate.py DIR, or generate.py --gpt2 DIR")
        model, params, encode, decode, stop = (
            open_gpt2(options.gpt2) if options.gpt2 is not None else open_run(options.directory)
        )
        prompt = encode(options.prompt)
        if not prompt:
            raise ValueError("--prompt is empty: write at least one letter")
        tokens = stream(
            model,
            params,
            np.array(prompt),
            options.tokens,
            key=jax.random.key(options.seed),
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            stop_token=stop,
        )
        write(prompt, tokens, decode, stop)
    except (OSError, ValueError, ImportError, OverflowError) as error:
        print(f"generate.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ngenerate.py: interrupted", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    new = argparse.ArgumentParser(description=__doc__)
    add = new.add_argument
    add("directory", metavar="DIR", nargs="?", help="what train.py --out DIR saved")
    add("--gpt2", metavar="DIR", help="a folder with config.json, model.safetensors and tokenizer.json of a GPT-2")
    add("--prompt", default="\n", help="text to continue (default: a new line)")
    add("--tokens", type=int, default=300, metavar="N", help="tokens to add; a run's are bytes (default: 300)")
    add("--temperature", type=float, default=0.8, metavar="X", help="0 always takes the likeliest (default: 0.8)")
    add("--top-k", type=int, metavar="N", help="draw from the N likeliest tokens alone (default: all)")
    add("--top-p", type=float, metavar="P", help="draw from the fewest tokens that hold this share (default: all)")
    add("--seed", type=int, default=0, metavar="N", help="same seed, same text (default: 0)")
    return new


def open_run(directory: str) -> tuple[Any, Any, Callable, Callable, None]:
    """Read a saved run, whose tokens are bytes."""
    model, params = load_model(directory)
    encode = lambda text: list(text.encode("utf-8", errors="surrogateescape"))  # noqa: E731
    return model, params, encode, printable, None


def open_gpt2(directory: str) -> tuple[Any, Any, Callable, Callable, int | None]:
    """Read a GPT-2 and its vocabulary."""
    file = Path(directory) / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist: it holds the vocabulary, in the form of the tokenizers library"
        )
    tokenizers = require("tokenizers", extra="gpt2")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{file} is damaged or no tokenizer: {error}") from None
    model, params = load_gpt2(directory)
    if tokenizer.get_vocab_size() > model.config.vocab_size:
        raise ValueError(
            f"{file} has {tokenizer.get_vocab_size()} tokens, but the model knows {model.config.vocab_size}: "
            "they do not belong together"
        )
    decode = lambda tokens: tokenizer.decode([int(token) for token in tokens])  # noqa: E731
    return model, params, lambda text: tokenizer.encode(text).ids, decode, tokenizer.token_to_id("<|endoftext|>")


def write(prompt: list[int], tokens: Iterable[Any], decode: Callable, stop: int | None) -> None:
    """Print text as it comes: a letter of several tokens when it is whole."""
    so_far, shown = list(prompt), ""
    for token in tokens:
        if int(token) == stop:
            break
        so_far.append(int(token))
        text = decode(so_far)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            say(text[len(shown) :], end="")
            shown = text
    say(decode(so_far)[len(shown) :])


if __name__ == "__main__":
    sys.exit(main())
