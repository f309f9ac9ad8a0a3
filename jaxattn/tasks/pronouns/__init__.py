"""Learn a small language in which every sentence ends with a question: whom does the pronoun mean?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxattn.models.gpt import GPT
from jaxattn.tasks.made_up import MadeUpTask
from jaxattn.tasks.pronouns.report import format_report, report_pronouns
from jaxattn.tasks.pronouns.sentences import LONGEST, held_out_sentences, training_sentences
from jaxattn.tasks.pronouns.words import WORDS
from jaxattn.tasks.reports import write_report
from jaxattn.training.config import TrainConfig

REPORT = "pronouns.json"


class PronounTask(MadeUpTask):
    """Sentences drawn from the seed; the report says which head finds the noun."""

    preset: ClassVar[Mapping[str, Any]] = {
        "recipe": "gpt2",
        "layers": 2,
        "heads": 4,
        "batch_size": 32,
        "steps": 2000,
        "save_every": 500,
    }
    words, longest = WORDS, LONGEST
    name, text, unit = "pronouns", "sentences with a pronoun", "word"

    def draw(self, seed: int, *, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
        sentences = held_out_sentences(seed) if held_out else training_sentences(seed)
        return sentences.tokens, sentences.lengths

    def report(self, config: TrainConfig, model: GPT, params: Any, directory: Path | None) -> str:
        report = report_pronouns(model, params, held_out_sentences(config.seed), training_sentences(config.seed))
        if directory is not None:
            write_report(directory / REPORT, report)
        return format_report(report)


TASK = PronounTask()
