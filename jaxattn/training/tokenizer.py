"""Text to tokens and back: bytes, or pieces of words by the `tokenizers` library, kept with the run."""

import codecs
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxattn.extras import require

FILE = "tokenizer.json"
END = "<|endoftext|>"
# A byte-level BPE is learned from so much of each file, and files are read in pieces of a megabyte.
LEARNED_BYTES, PIECE = 50_000_000, 2**20


class Tokenizer(NamedTuple):
    """How text becomes tokens: `encode(text)` gives a list of ids, `decode(ids)` text; `separator` ends documents."""

    vocab_size: int
    separator: int | None
    encode: Callable[[str], list[int]]
    decode: Callable[[Any], str]


def bytes_tokenizer() -> Tokenizer:
    """Take every byte as a token.

    Example:
        >>> from jaxattn.training.tokenizer import bytes_tokenizer
        >>> bytes_tokenizer().encode("fox")
        [102, 111, 120]
    """
    return Tokenizer(256, None, lambda text: list(text.encode("utf-8", errors="surrogateescape")), printable)


def read_tokenizer(file: Path) -> Tokenizer:
    """Read a file of the `tokenizers` library, GPT-2's among them.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged or something else.
        ImportError: tokenizers is not installed.
    """
    tokenizers = require("tokenizers", extra="train")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except OSError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{file} is damaged or no tokenizer: {error}") from None
    # Text is cut by whoever trains, and begins and ends where it does.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    vocabulary = tokenizer.get_vocab()

    def encode(text: str) -> list[int]:
        try:
            clean = text.encode("utf-8", errors="replace").decode("utf-8")
            return list(tokenizer.encode(clean, add_special_tokens=False).ids)
        except Exception as error:
            words = ", ".join(sorted(vocabulary, key=vocabulary.__getitem__)[:40])
            start = text[:60] + (" …" if len(text) > 60 else "")
            raise ValueError(f"{start!r} has a word that {file} does not know ({error}); it knows {words} …") from None

    return Tokenizer(
        1 + max(vocabulary.values(), default=0),
        tokenizer.token_to_id(END),
        encode,
        lambda tokens: tokenizer.decode([int(token) for token in tokens]),
    )


def open_tokenizer(directory: Path) -> Tokenizer:
    """Return the tokenizer of a run: the one that it keeps, or else bytes."""
    return read_tokenizer(directory / FILE) if (directory / FILE).exists() else bytes_tokenizer()


def learn_bpe(files: Sequence[Path], vocab_size: int) -> str:
    """Learn a byte-level BPE from texts, and return it as the text of a `tokenizer.json`.

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
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    pieces = (piece for file in files for piece in _pieces(file, LEARNED_BYTES))
    tokenizer.train_from_iterator(pieces, trainer)
    return str(tokenizer.to_str())


def write_tokens(tokenizer: Tokenizer, files: Sequence[Path], directory: Path) -> tuple[list[Path], str]:
    """Turn texts into files of tokens, one for each that is not there yet, and return them with the tokens' type.

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
            with open(partial, "wb") as out:
                for piece in _pieces(file):
                    out.write(np.array(tokenizer.encode(piece), dtype).tobytes())
            partial.replace(path)
        written.append(path)
    return written, dtype


def printable(tokens: Any) -> str:
    """Show bytes as text: UTF-8 where it is, and no control characters that could upset a terminal."""
    text = np.asarray(tokens, np.uint8).tobytes().decode("utf-8", errors="replace")
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _pieces(file: Path, most: int | None = None) -> Iterator[str]:
    """Read text piece by piece, cut after a line where there is one; what is no UTF-8 is replaced."""
    decoder, rest, so_far = codecs.getincrementaldecoder("utf-8")(errors="replace"), "", 0
    with open(file, "rb") as source:
        for content in iter(functools.partial(source.read, PIECE), b""):
            rest, so_far = rest + decoder.decode(content), so_far + len(content)
            cut = rest.rfind("\n") + 1
            # A text without lines grows until it is cut anywhere.
            if cut or len(rest) >= PIECE:
                yield rest[: cut or None]
                rest = rest[cut:] if cut else ""
            if most is not None and so_far >= most:
                return
    rest += decoder.decode(b"", final=True)
    if rest:
        yield rest
