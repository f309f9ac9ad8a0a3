"""Convert text to tokens and back: bytes, or pieces of words by the `tokenizers` library."""

import codecs
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxattn.extras import require
from jaxattn.files import check_input

FILE = "tokenizer.json"
EOS = "<|endoftext|>"  # the text of the EOS token, which ends a document
# A BPE is learned from so many bytes of each file. Files are read in pieces of a megabyte.
BPE_BYTES, PIECE = 50_000_000, 2**20
# Each core encodes a piece, which takes about 150 MB.
MOST_PIECES = 16


class Tokenizer(NamedTuple):
    """The functions `encode(text) -> ids` and `decode(ids) -> text`, and the EOS token, if there is one.

    `encode_batch(texts)` encodes several texts, on all cores if the tokenizer can.
    """

    vocab_size: int
    eos_token: int | None
    encode: Callable[[str], list[int]]
    decode: Callable[[Any], str]
    encode_batch: Callable[[Sequence[str]], list[list[int]]]


def bytes_tokenizer() -> Tokenizer:
    """Return the tokenizer whose tokens are bytes.

    Example:
        >>> from jaxattn.training.tokenizer import bytes_tokenizer
        >>> bytes_tokenizer().encode("fox")
        [102, 111, 120]
    """

    def encode(text: str) -> list[int]:
        return list(text.encode("utf-8", errors="surrogateescape"))

    return Tokenizer(256, None, encode, printable, lambda texts: [encode(text) for text in texts])


def read_tokenizer(file: Path, add_special_tokens: bool = False) -> Tokenizer:
    """Read a `tokenizer.json` of the `tokenizers` library, such as GPT-2's.

    With `add_special_tokens`, a text gets the tokens around it that the file says, such as Llama's first token.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged or holds something else.
        ImportError: tokenizers is not installed.
    """
    check_input("the tokenizer", file)
    tokenizers = require("tokenizers", extra="train")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except OSError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{file} is damaged or not a tokenizer: {error}") from None
    # Training cuts the text into sequences itself.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    vocabulary = tokenizer.get_vocab()

    def encode(text: str) -> list[int]:
        try:
            return list(tokenizer.encode(_without_surrogates(text), add_special_tokens=add_special_tokens).ids)
        except Exception as error:
            words = ", ".join(sorted(vocabulary, key=vocabulary.__getitem__)[:40])
            start = text[:60] + (" …" if len(text) > 60 else "")
            raise ValueError(
                f"{start!r} has a word that is not in {file} ({error}); the vocabulary is {words} …"
            ) from None

    def encode_batch(texts: Sequence[str]) -> list[list[int]]:
        try:
            encodings = tokenizer.encode_batch_fast(
                [_without_surrogates(text) for text in texts], add_special_tokens=add_special_tokens
            )
        except Exception:
            return [encode(text) for text in texts]  # raises an error that names the text
        return [encoding.ids for encoding in encodings]

    return Tokenizer(
        1 + max(vocabulary.values(), default=0),
        tokenizer.token_to_id(EOS),
        encode,
        lambda tokens: tokenizer.decode([int(token) for token in tokens]),
        encode_batch,
    )


def open_tokenizer(directory: Path) -> Tokenizer:
    """Return the tokenizer that a run has saved, or bytes if it has saved none."""
    return read_tokenizer(directory / FILE) if (directory / FILE).exists() else bytes_tokenizer()


def learn_bpe(files: Sequence[Path], vocab_size: int) -> str:
    """Learn a byte-level BPE tokenizer from texts, and return the contents of its `tokenizer.json`.

    Raises:
        OSError: a file cannot be read.
        ImportError: tokenizers is not installed.

    References:
        Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"; Radford et al. 2019.
    """
    tokenizers = require("tokenizers", extra="train")
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    pieces = (piece for file in files for piece in _pieces(file, BPE_BYTES))
    tokenizer.train_from_iterator(pieces, trainer)
    return str(tokenizer.to_str())


def write_tokens(tokenizer: Tokenizer, files: Sequence[Path], directory: Path) -> tuple[list[Path], str]:
    """Write a file of tokens for each text, unless it exists already; return the files and the type of the tokens.

    A text is encoded in pieces, whose ends are the same on any number of cores, and so are the tokens.

    Raises:
        OSError: a file cannot be read or written.
    """
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for number, file in enumerate(files):
        path = directory / f"{number}.{dtype}"
        if not path.exists():
            partial = path.with_suffix(".partial")
            pieces = _pieces(file)
            with open(partial, "wb") as out:
                while batch := list(itertools.islice(pieces, min(MOST_PIECES, os.cpu_count() or 1))):
                    for tokens in tokenizer.encode_batch(batch):
                        out.write(np.array(tokens, dtype).tobytes())
            partial.replace(path)
        written.append(path)
    return written, dtype


def printable(tokens: Any) -> str:
    """Decode bytes as UTF-8; invalid bytes and control characters, which could disturb a terminal, are replaced."""
    text = np.asarray(tokens, np.uint8).tobytes().decode("utf-8", errors="replace")
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _without_surrogates(text: str) -> str:
    """Replace what is not UTF-8, which the library refuses."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _pieces(file: Path, max_bytes: int | None = None) -> Iterator[str]:
    """Read a text in pieces that end with a line, if there are lines; what is not UTF-8 is replaced."""
    decoder, rest, bytes_read = codecs.getincrementaldecoder("utf-8")(errors="replace"), "", 0
    with open(file, "rb") as source:
        for content in iter(functools.partial(source.read, PIECE), b""):
            rest, bytes_read = rest + decoder.decode(content), bytes_read + len(content)
            cut = rest.rfind("\n") + 1
            # Without the end of a line, the piece grows up to its maximum size and is cut anywhere.
            if cut or len(rest) >= PIECE:
                yield rest[: cut or None]
                rest = rest[cut:] if cut else ""
            if max_bytes is not None and bytes_read >= max_bytes:
                return
    rest += decoder.decode(b"", final=True)
    if rest:
        yield rest
