"""A task whose text is made up: sequences of a few words, drawn from the seed and packed one after the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from jaxattn.extras import require
from jaxattn.files import write_whole
from jaxattn.tasks import Data, Task
from jaxattn.training.config import TrainConfig
from jaxattn.training.directory import TOKENS
from jaxattn.training.text import Corpus, Stretch, Text, check_length
from jaxattn.training.tokenizer import EOS, FILE, read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class MadeUpTask(Task):
    """The words, whose first is EOS, and what users call the task, its text and a word of it."""

    words: ClassVar[Sequence[str]]
    longest: ClassVar[int]  # the most words in a sequence, EOS included
    name: ClassVar[str]
    text: ClassVar[str]
    unit: ClassVar[str]

    def draw(self, seed: int, *, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids `(N, longest)`, padded at the end, and the words of each sequence with an EOS `(N,)`."""
        raise NotImplementedError

    def check(self, config: TrainConfig) -> None:
        if config.text or config.tokenizer != "bytes":
            raise ValueError(f"--task {self.name} makes its own text and tokenizer: leave --text and --tokenizer out")
        if config.context_length < self.longest:
            raise ValueError(
                f"--context-length is {config.context_length}, but --task {self.name} has sequences of up to "
                f"{self.longest} {self.unit}s: write --context-length {self.longest} or more"
            )

    def open_data(self, config: TrainConfig, directory: Path) -> Data:
        if not (directory / FILE).exists():
            write_whole(directory / FILE, word_tokenizer(self.words).to_str().encode())
        (directory / TOKENS).mkdir(exist_ok=True)
        train, held_out = (
            self._write(config.seed, is_held_out, directory / TOKENS / f"{part}.uint16")
            for part, is_held_out in (("train", False), ("held_out", True))
        )
        corpus = Corpus(train, held_out)
        check_length(corpus, config.context_length, f"{self.unit}s")
        return Data(corpus, read_tokenizer(directory / FILE), self.text, self.unit)

    def _write(self, seed: int, held_out: bool, path: Path) -> Text:
        """Write the sequences without their padding, if the file is not there yet."""
        tokens, lengths = self.draw(seed, held_out=held_out)
        real = np.arange(tokens.shape[1]) < lengths[:, None]
        if not path.exists():
            write_whole(path, tokens[real].astype("uint16").tobytes())
        return Text((Stretch(path, "uint16", 0, int(real.sum())),), list(self.words).index(EOS))


def word_tokenizer(words: Sequence[str]) -> "Tokenizer":
    """Return a `tokenizers.Tokenizer` with one token per word; encoding an unknown word is an error.

    Raises:
        ImportError: tokenizers is not installed.

    Example:
        >>> from jaxattn.tasks.made_up import EOS, word_tokenizer
        >>> tokenizer = word_tokenizer((EOS, "near", "the", "cow", "dog", ","))
        >>> tokenizer.decode(tokenizer.encode("Near the cow, the dog").ids)
        'near the cow , the dog'
    """
    tokenizers = require("tokenizers", extra="train")
    tokenizer: Tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(words)})
    )
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([EOS])
    return tokenizer
