"""Learn a small language in which every sentence ends with a question: whom does the pronoun mean?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxattn.files import write_whole
from jaxattn.models.gpt import GPT
from jaxattn.tasks import Data, Task
from jaxattn.tasks.pronouns.report import format_report, report_pronouns, write_report
from jaxattn.tasks.pronouns.sentences import LONGEST, Sentences, held_out_sentences, training_sentences
from jaxattn.tasks.pronouns.words import make_tokenizer, vocabulary
from jaxattn.training.config import TrainConfig
from jaxattn.training.directory import TOKENS
from jaxattn.training.text import Corpus, Stretch, Text, check_length
from jaxattn.training.tokenizer import EOS, FILE, read_tokenizer

REPORT = "pronouns.json"


class PronounTask(Task):
    """Sentences drawn from the seed, packed one after the other; the report says which head finds the noun."""

    preset: ClassVar[Mapping[str, Any]] = {
        "recipe": "gpt2",
        "layers": 2,
        "heads": 4,
        "batch_size": 32,
        "steps": 2000,
        "save_every": 500,
    }

    def check(self, config: TrainConfig) -> None:
        if config.text or config.tokenizer != "bytes":
            raise ValueError("--task pronouns makes its own text and tokenizer: leave --text and --tokenizer out")
        if config.context_length < LONGEST:
            raise ValueError(
                f"--context-length is {config.context_length}, but a sentence has up to {LONGEST} words: "
                f"write --context-length {LONGEST} or more"
            )

    def open_data(self, config: TrainConfig, directory: Path) -> Data:
        if not (directory / FILE).exists():
            write_whole(directory / FILE, make_tokenizer().to_str().encode())
        (directory / TOKENS).mkdir(exist_ok=True)
        corpus = Corpus(
            _write_tokens(training_sentences(config.seed), directory / TOKENS / "train.uint16"),
            _write_tokens(held_out_sentences(config.seed), directory / TOKENS / "held_out.uint16"),
        )
        check_length(corpus, config.context_length, "words")
        return Data(corpus, read_tokenizer(directory / FILE), "sentences with a pronoun", "word")

    def report(self, config: TrainConfig, model: GPT, params: Any, directory: Path | None) -> str:
        report = report_pronouns(model, params, held_out_sentences(config.seed), training_sentences(config.seed))
        if directory is not None:
            write_report(directory / REPORT, report)
        return format_report(report)


TASK = PronounTask()


def _write_tokens(sentences: Sentences, path: Path) -> Text:
    """Write the sentences without their padding, if the file is not there yet."""
    real = np.arange(LONGEST) < sentences.lengths[:, None]
    if not path.exists():
        write_whole(path, sentences.tokens[real].astype("uint16").tobytes())
    return Text((Stretch(path, "uint16", 0, int(real.sum())),), vocabulary()[EOS])
