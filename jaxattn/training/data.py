"""What a run learns from: its tokenizer, and its text as files of tokens."""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxattn.training.config import TrainConfig
from jaxattn.training.directory import TOKENS, fingerprints, open_directory
from jaxattn.training.pronoun_words import make_tokenizer, vocabulary
from jaxattn.training.pronouns import LONGEST, held_out, trained_on
from jaxattn.training.saving import write_whole
from jaxattn.training.text import Corpus, Stretch, Text, check_length, make_corpus, standard_library
from jaxattn.training.tokenizer import END, FILE, Tokenizer, bytes_tokenizer, learn_bpe, read_tokenizer, write_tokens

Result = TypeVar("Result")


class Data(NamedTuple):
    """A corpus, how its tokens read, what it is called, what one token is called, and the run's directory."""

    corpus: Corpus
    tokenizer: Tokenizer
    name: str
    unit: str
    directory: Path | None


def open_data(config: TrainConfig, resume: bool) -> Data:
    """Open the run's directory and its text; make tokens of it where they are not there yet.

    Raises:
        OSError: a text cannot be read, or the directory cannot be written.
        ValueError: there is too little text, or the directory holds another run.
        ImportError: tokenizers is not installed.
    """
    if config.task == "pronouns":
        return _pronouns(config, resume)
    files = [Path(name) for name in config.text] or standard_library()
    name = ", ".join(config.text) or "the source of Python's standard library"
    texts = fingerprints(files)
    if config.tokenizer == "bytes":
        # Before the directory is made, so that what is wrong with a text leaves nothing behind.
        corpus = make_corpus(files, config.context_length)
    directory = _directory(config, texts, resume)
    if config.tokenizer == "bytes":
        return Data(corpus, bytes_tokenizer(), name, "byte", directory)
    place = directory or _temporary()

    def make_tokens() -> tuple[Tokenizer, list[Path], str]:
        kept = place / FILE
        if not kept.exists():
            if config.tokenizer == "bpe":
                content = learn_bpe(files, config.vocab_size)
            else:
                # What is wrong with it is to be said of the file that was named.
                read_tokenizer(Path(config.tokenizer))
                content = Path(config.tokenizer).read_text(encoding="utf-8")
            write_whole(kept, content.encode())
        tokenizer = read_tokenizer(kept)
        return tokenizer, *write_tokens(tokenizer, files, place / TOKENS)

    tokenizer, tokens, dtype = _first_process_first(make_tokens)
    corpus = make_corpus(tokens, config.context_length, dtype, tokenizer.separator)
    return Data(corpus, tokenizer, name, "token", directory)


def _pronouns(config: TrainConfig, resume: bool) -> Data:
    """Make the sentences about pronouns, packed one after the other, and the tokenizer that knows their words."""
    directory = _directory(config, [], resume)
    place = directory or _temporary()

    def make_tokens() -> Corpus:
        if not (place / FILE).exists():
            write_whole(place / FILE, make_tokenizer().to_str().encode())
        (place / TOKENS).mkdir(exist_ok=True)
        texts = []
        for name, sentences in (("train", trained_on(config.seed)), ("held_out", held_out(config.seed))):
            real = np.arange(LONGEST) < sentences.lengths[:, None]
            path = place / TOKENS / f"{name}.uint16"
            if not path.exists():
                write_whole(path, sentences.tokens[real].astype("uint16").tobytes())
            texts.append(Text((Stretch(path, "uint16", 0, int(real.sum())),), vocabulary()[END]))
        return Corpus(*texts)

    corpus = _first_process_first(make_tokens)
    check_length(corpus, config.context_length, "words")
    return Data(corpus, read_tokenizer(place / FILE), "sentences with a pronoun", "word", directory)


def _temporary() -> Path:
    """Make a directory that goes when the program ends."""
    place = Path(tempfile.mkdtemp(prefix="jaxattn-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def _directory(config: TrainConfig, texts: list[str], resume: bool) -> Path | None:
    """Open the run's directory, if there is one; of several processes the first does."""
    if config.out is None:
        return None
    return _first_process_first(
        lambda: open_directory(config, texts, resume) if jax.process_index() == 0 else Path(str(config.out))
    )


def _first_process_first(make: Callable[[], Result]) -> Result:
    """Make something on disk; of several processes the first makes it, and the others find it made."""
    if jax.process_index() > 0:
        multihost_utils.sync_global_devices("made")
        return make()
    result = make()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("made")
    return result
