"""The command `jaxattn generate`."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn.cli import Parser
from jaxattn.models.generation import stream
from jaxattn.models.gpt2 import load_gpt2
from jaxattn.training.progress import say
from jaxattn.training.saving import load_model
from jaxattn.training.tokenizer import Tokenizer, open_tokenizer, read_tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    """Generate text; return the exit status."""
    options = parser().parse_args(argv)
    try:
        if (options.directory is None) == (options.gpt2 is None):
            raise ValueError("name one model: jaxattn generate DIR, or jaxattn generate --gpt2 DIR")
        model, params, tokenizer = open_gpt2(options.gpt2) if options.gpt2 is not None else open_run(options.directory)
        prompt = first_tokens(options.prompt, tokenizer)
        tokens = stream(
            model,
            params,
            jnp.array(prompt),
            options.tokens,
            key=jax.random.key(options.seed),
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            stop_token=tokenizer.eos_token,
        )
        write(prompt, tokens, tokenizer)
    except (OSError, ValueError, ImportError, OverflowError) as error:
        print(f"jaxattn generate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\njaxattn generate: interrupted", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """Define the options."""
    new = Parser(
        prog="jaxattn generate",
        description="Continue a text with a model that jaxattn train --out DIR has saved, or with a GPT-2 in the "
        "format of Hugging Face.",
    )
    add = new.add_argument
    add("directory", metavar="DIR", nargs="?", help="the directory of a run, saved by jaxattn train --out DIR")
    add("--gpt2", metavar="DIR", help="a folder with config.json, model.safetensors and tokenizer.json of a GPT-2")
    add("--prompt", help="text to continue (default: a new document, or a new line)")
    add("--tokens", type=int, default=300, metavar="N", help="tokens to add (default: 300)")
    add("--temperature", type=float, default=0.8, metavar="X", help="0 always takes the likeliest (default: 0.8)")
    add("--top-k", type=int, metavar="N", help="sample from the N likeliest tokens only (default: all)")
    add("--top-p", type=float, metavar="P", help="sample from the fewest tokens whose probabilities sum to P")
    add("--seed", type=int, default=0, metavar="N", help="the same seed gives the same text (default: 0)")
    return new


def first_tokens(prompt: str | None, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens to continue."""
    if prompt is None:
        return tokenizer.encode("\n") if tokenizer.eos_token is None else [tokenizer.eos_token]
    tokens = tokenizer.encode(prompt)
    if not tokens:
        raise ValueError("--prompt is empty: write at least one letter")
    return tokens


def open_run(directory: str) -> tuple[Any, Any, Tokenizer]:
    """Load a saved run; return model, parameters and tokenizer."""
    return *load_model(directory), open_tokenizer(Path(directory))


def open_gpt2(directory: str) -> tuple[Any, Any, Tokenizer]:
    """Load a GPT-2; return model, parameters and tokenizer."""
    file = Path(directory) / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist: it holds the vocabulary, in the format of the tokenizers library"
        )
    tokenizer = read_tokenizer(file)
    model, params = load_gpt2(directory)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{file} has {tokenizer.vocab_size} tokens, but the model has {model.config.vocab_size}: "
            "they do not belong together"
        )
    return model, params, tokenizer


def write(prompt: list[int], tokens: Iterable[Any], tokenizer: Tokenizer) -> None:
    """Print the text as it is generated; a letter of several tokens is printed once it is complete."""
    all_tokens, printed = list(prompt), ""
    for token in tokens:
        if int(token) == tokenizer.eos_token:
            break
        all_tokens.append(int(token))
        text = tokenizer.decode(all_tokens)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            say(text[len(printed) :], end="")
            printed = text
    say(tokenizer.decode(all_tokens)[len(printed) :])
