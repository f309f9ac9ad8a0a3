"""Learn any text: the user's files, or by default the source of Python's standard library."""

import sysconfig
from collections.abc import Sequence
from pathlib import Path

from jaxattn.files import check_input, write_whole
from jaxattn.tasks import Data, Task
from jaxattn.training.config import TrainConfig
from jaxattn.training.directory import TOKENS
from jaxattn.training.fingerprints import fingerprints
from jaxattn.training.text import make_corpus
from jaxattn.training.tokenizer import FILE, Tokenizer, bytes_tokenizer, learn_bpe, read_tokenizer, write_tokens

STANDARD_LIBRARY_BYTES = 4_000_000


class TextTask(Task):
    """Text as bytes, or as tokens of a tokenizer that is learned from it or given."""

    def fingerprints(self, config: TrainConfig) -> list[str]:
        if config.tokenizer not in ("bytes", "bpe") and not (config.out and (Path(config.out) / FILE).exists()):
            read_tokenizer(Path(config.tokenizer))  # raises an error that names the user's file
        for file in _files(config):
            check_input("--text", file)
        # Without a directory nothing is ever resumed.
        prints = [] if config.out is None else fingerprints(_files(config))
        if config.tokenizer == "bytes":
            make_corpus(_files(config), config.context_length)  # raises if there is too little text
        return prints

    def open_data(self, config: TrainConfig, directory: Path) -> Data:
        files, name = _files(config), ", ".join(config.text) or "the source of Python's standard library"
        if config.tokenizer == "bytes":
            return Data(make_corpus(files, config.context_length), bytes_tokenizer(), name, "byte")
        tokenizer = _make_tokenizer(config, files, directory / FILE)
        tokens, dtype = write_tokens(tokenizer, files, directory / TOKENS)
        corpus = make_corpus(tokens, config.context_length, dtype, tokenizer.eos_token)
        return Data(corpus, tokenizer, name, "token")


TASK = TextTask()


def standard_library() -> list[Path]:
    """Return modules of Python's standard library in alphabetical order, four megabytes of source.

    Raises:
        ValueError: this Python comes without the source.
    """
    files: list[Path] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"), key=lambda path: path.name):
        files.append(path)
        if sum(path.stat().st_size for path in files) > STANDARD_LIBRARY_BYTES:
            break
    if not files:
        raise ValueError("this Python comes without the source of its standard library: name a text with --text FILE")
    return files


def _files(config: TrainConfig) -> list[Path]:
    return [Path(name) for name in config.text] or standard_library()


def _make_tokenizer(config: TrainConfig, files: Sequence[Path], saved: Path) -> Tokenizer:
    """Return the saved tokenizer; save it first if it is not there."""
    if not saved.exists():
        if config.tokenizer == "bpe":
            content = learn_bpe(files, config.vocab_size)
        else:
            content = Path(config.tokenizer).read_text(encoding="utf-8")
        write_whole(saved, content.encode())
    return read_tokenizer(saved)
