"""Continue a text with a model that `train.py --out DIR` saved, or with a GPT-2 as Hugging Face stores it."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxattn import load_gpt2, stream
from jaxattn.training.progress import say
from jaxattn.training.saving import load_model
from jaxattn.training.tokenizer import Tokenizer, open_tokenizer, read_tokenizer


def main() -> int:
    """Run; return the exit status."""
    options = parser().parse_args()
    try:
        if (options.directory is None) == (options.gpt2 is None):
            raise ValueError("name one model: generate.py DIR, or generate.py --gpt2 DIR")
        model, params, tokenizer = open_gpt2(options.gpt2) if options.gpt2 is not None else open_run(options.directory)
        prompt = first_tokens(options.prompt, tokenizer)
        tokens = stream(
            model,
            params,
            np.array(prompt),
            options.tokens,
            key=jax.random.key(options.seed),
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            stop_token=tokenizer.separator,
        )
        write(prompt, tokens, tokenizer)
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
    add("--prompt", help="text to continue (default: a new document, or a new line)")
    add("--tokens", type=int, default=300, metavar="N", help="tokens to add (default: 300)")
    add("--temperature", type=float, default=0.8, metavar="X", help="0 always takes the likeliest (default: 0.8)")
    add("--top-k", type=int, metavar="N", help="draw from the N likeliest tokens alone (default: all)")
    add("--top-p", type=float, metavar="P", help="draw from the fewest tokens that hold this share (default: all)")
    add("--seed", type=int, default=0, metavar="N", help="same seed, same text (default: 0)")
    return new


def first_tokens(prompt: str | None, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens to go on from."""
    if prompt is None:
        return tokenizer.encode("\n") if tokenizer.separator is None else [tokenizer.separator]
    tokens = tokenizer.encode(prompt)
    if not tokens:
        raise ValueError("--prompt is empty: write at least one letter")
    return tokens


def open_run(directory: str) -> tuple[Any, Any, Tokenizer]:
    """Read a saved run."""
    return *load_model(directory), open_tokenizer(Path(directory))


def open_gpt2(directory: str) -> tuple[Any, Any, Tokenizer]:
    """Read a GPT-2 and its vocabulary."""
    file = Path(directory) / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist: it holds the vocabulary, in the form of the tokenizers library"
        )
    tokenizer = read_tokenizer(file)
    model, params = load_gpt2(directory)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{file} has {tokenizer.vocab_size} tokens, but the model knows {model.config.vocab_size}: "
            "they do not belong together"
        )
    return model, params, tokenizer


def write(prompt: list[int], tokens: Iterable[Any], tokenizer: Tokenizer) -> None:
    """Print text as it comes: a letter of several tokens when it is whole."""
    so_far, shown = list(prompt), ""
    for token in tokens:
        if int(token) == tokenizer.separator:
            break
        so_far.append(int(token))
        text = tokenizer.decode(so_far)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            say(text[len(shown) :], end="")
            shown = text
    say(tokenizer.decode(so_far)[len(shown) :])


if __name__ == "__main__":
    sys.exit(main())
