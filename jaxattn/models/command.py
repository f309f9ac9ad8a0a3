"""The command `jaxattn generate`."""

import argparse
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn.cli import MAX_SEED, Parser, check_number, run_command, typed
from jaxattn.files import check_input
from jaxattn.models.generation import stream
from jaxattn.models.gpt2 import load_gpt2
from jaxattn.models.pretrained import Pretrained, open_pretrained
from jaxattn.training.progress import say
from jaxattn.training.saving import check_numbers, load_run
from jaxattn.training.tokenizer import Tokenizer, read_tokenizer

# More would take days; the random bits of all tokens are drawn at once.
MAX_TOKENS = 10**6


def main(argv: Sequence[str] | None = None) -> int:
    """Generate text; return the exit status."""
    return run_command("generate", lambda: generate(parser().parse_args(argv)))


def generate(options: argparse.Namespace) -> int:
    """Print the text as it is generated."""
    check(options)
    model, params, tokenizer, prompt, ends = opened(options)
    tokens = stream(
        model,
        params,
        jnp.array(prompt),
        options.tokens,
        key=jax.random.key(options.seed),
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
    )
    write(prompt, tokens, tokenizer, ends)
    return 0


def opened(options: argparse.Namespace) -> Pretrained:
    """Load the model that the options name."""
    if options.model is not None:
        return open_pretrained(options.model, options.prompt, options.tokens)
    model, params, tokenizer = open_gpt2(options.gpt2) if options.gpt2 is not None else load_run(options.directory)
    ends = frozenset() if tokenizer.eos_token is None else frozenset({tokenizer.eos_token})
    return Pretrained(model, params, tokenizer, first_tokens(options.prompt, tokenizer), ends)


def parser() -> argparse.ArgumentParser:
    """Define the options."""
    new = Parser(
        prog="jaxattn generate",
        description="Continue a text with a model that jaxattn train --out DIR has saved, or with a GPT-2, Llama, "
        "Mistral, Qwen2 or Qwen3 in the format of Hugging Face.",
    )
    add = new.add_argument
    add("directory", metavar="DIR", nargs="?", help="the directory of a run, saved by jaxattn train --out DIR")
    add("--model", metavar="DIR", help="a folder that save_pretrained of transformers wrote, with its tokenizer.json")
    add("--gpt2", metavar="DIR", help="a folder with config.json, tokenizer.json and the safetensors files of a GPT-2")
    add("--prompt", help="text to continue (default: a new document, or a new line)")
    add("--tokens", type=int, default=300, metavar="N", help="tokens to add (default: 300)")
    add("--temperature", type=float, default=0.8, metavar="X", help="0 always takes the likeliest (default: 0.8)")
    add("--top-k", type=int, metavar="N", help="sample from the N likeliest tokens only (default: all)")
    add("--top-p", type=float, metavar="P", help="sample from the fewest tokens whose probabilities sum to P")
    add("--seed", type=int, default=0, metavar="N", help="the same seed gives the same text (default: 0)")
    return new


def check(options: argparse.Namespace) -> None:
    """Refuse options that cannot work before a model is loaded."""
    if [options.directory, options.gpt2, options.model].count(None) != 2:
        command = typed("generate")
        raise ValueError(f"name one model: {command} DIR, {command} --model DIR, or {command} --gpt2 DIR")
    check_number("--tokens", options.tokens, 0, MAX_TOKENS)
    check_number("--temperature", options.temperature, 0)
    check_number("--seed", options.seed, 0, MAX_SEED)
    if options.top_k is not None:
        check_number("--top-k", options.top_k, 1)
    if options.top_p is not None and not 0 < options.top_p <= 1:
        raise ValueError(f"--top-p is {options.top_p}, but must be above 0 and at most 1: write --top-p 0.9")


def first_tokens(prompt: str | None, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens to continue."""
    if prompt is None:
        return tokenizer.encode("\n") if tokenizer.eos_token is None else [tokenizer.eos_token]
    tokens = tokenizer.encode(prompt)
    if not tokens:
        raise ValueError("--prompt is empty: write at least one letter")
    return tokens


def open_gpt2(directory: str) -> tuple[Any, Any, Tokenizer]:
    """Load a GPT-2; return model, parameters and tokenizer."""
    files = [Path(directory) / name for name in ("tokenizer.json", "config.json")]
    for file in files:  # load_gpt2 finds the parameters, in one file or several
        check_input("--gpt2", file)
    tokenizer = read_tokenizer(files[0])
    model, params = load_gpt2(directory)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{files[0]} has {tokenizer.vocab_size} tokens, but the model has {model.config.vocab_size}: "
            "they do not belong together"
        )
    check_numbers(Path(directory), params)
    return model, params, tokenizer


def write(prompt: list[int], tokens: Iterable[Any], tokenizer: Tokenizer, ends: Collection[int]) -> None:
    """Print the text as it is generated; a letter of several tokens is printed once it is complete."""
    all_tokens, printed = list(prompt), ""
    for token in tokens:
        if int(token) in ends:
            break
        all_tokens.append(int(token))
        text = tokenizer.decode(all_tokens)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            say(text[len(printed) :], end="")
            printed = text
    say(tokenizer.decode(all_tokens)[len(printed) :])
