"""A model in Hugging Face's format with its tokenizer, for the command `jaxattn generate --model`."""

from pathlib import Path
from typing import Any, NamedTuple

from jaxattn.files import check_input, read_json
from jaxattn.models.gpt import GPT
from jaxattn.models.gpt2 import load_gpt2
from jaxattn.models.llama import Llama
from jaxattn.models.llama_files import KINDS, load_llama
from jaxattn.training.saving import check_numbers
from jaxattn.training.tokenizer import Tokenizer, read_tokenizer


class Pretrained(NamedTuple):
    """A model, its tokenizer, the tokens of the prompt, and the tokens that end a text."""

    model: GPT | Llama
    params: Any
    tokenizer: Tokenizer
    prompt: list[int]
    ends: frozenset[int]


def open_pretrained(directory: str, prompt: str | None, num_tokens: int) -> Pretrained:
    """Load a GPT-2, Llama, Mistral, Qwen2 or Qwen3, with a KV cache for the prompt and `num_tokens` tokens.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: the architecture is another, a file is damaged, or files do not belong together.
    """
    path = Path(directory)
    for name in ("tokenizer.json", "config.json"):
        check_input("--model", path / name)
    fields = read_json(path / "config.json")
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    if kind not in ("gpt2", *KINDS):
        raise ValueError(
            f"{path / 'config.json'} has model_type={kind!r}, but --model reads gpt2, {', '.join(KINDS)}: name "
            "another folder"
        )
    tokenizer = read_tokenizer(path / "tokenizer.json", add_special_tokens=True)
    ends = end_tokens(path, fields)
    tokens = first_tokens(prompt, tokenizer, fields, ends)
    model: GPT | Llama
    if kind == "gpt2":
        model, params = load_gpt2(path)
    else:
        # The cache has room for what is asked for alone; a model's longest sequence may need more than the memory.
        longest = fields.get("max_position_embeddings") or 2048
        model, params = load_llama(path, context_length=min(longest, len(tokens) + num_tokens))
    largest, vocab_size = max(tokenizer.vocab_size - 1, *ends, *tokens), model.config.vocab_size
    if largest >= vocab_size:
        raise ValueError(
            f"{path / 'tokenizer.json'} has the token {largest}, but the model has {vocab_size}: they do not belong "
            "together"
        )
    check_numbers(path, params)
    return Pretrained(model, params, tokenizer, tokens, ends)


def end_tokens(path: Path, fields: dict[str, Any]) -> frozenset[int]:
    """Return the tokens that end a text: those of `generation_config.json`, or else of `config.json`."""
    file = path / "generation_config.json"
    given = read_json(file).get("eos_token_id") if file.is_file() else None
    given = fields.get("eos_token_id") if given is None else given
    numbers = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(number, int) for number in numbers):
        raise ValueError(f"{path}: eos_token_id={given!r} must be a token id, or a list of them")
    return frozenset(numbers)


def first_tokens(prompt: str | None, tokenizer: Tokenizer, fields: dict[str, Any], ends: frozenset[int]) -> list[int]:
    """Return the tokens to continue: those of the prompt, or what a text begins with."""
    if prompt == "":
        raise ValueError("--prompt is empty: write at least one letter")
    if prompt is not None:
        return tokenizer.encode(prompt)
    start = fields.get("bos_token_id")
    if start is None and not ends:
        return tokenizer.encode("\n")
    return [min(ends) if start is None else int(start)]
