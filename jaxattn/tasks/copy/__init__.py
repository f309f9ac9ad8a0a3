"""Learn to copy: random letters, a separator, the same letters again. The bigram model cannot; attention can."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxattn.models.gpt import GPT
from jaxattn.tasks.copy.report import format_report, report_copying
from jaxattn.tasks.copy.sequences import LENGTH, WORDS, held_out_sequences, training_sequences
from jaxattn.tasks.made_up import MadeUpTask
from jaxattn.tasks.reports import write_report
from jaxattn.training.config import TrainConfig

REPORT = "copy.json"


class CopyTask(MadeUpTask):
    """Sequences drawn from the seed; the report says how often the copy is right, and which head copies."""

    preset: ClassVar[Mapping[str, Any]] = {
        "recipe": "gpt2",
        "context_length": LENGTH,
        "layers": 1,
        "heads": 2,
        "width": 64,
        "batch_size": 32,
        "steps": 500,
        "save_every": 100,
    }
    words, longest = WORDS, LENGTH
    name, text, unit = "copy", "random letters, each sequence twice", "letter"

    def draw(self, seed: int, *, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
        sequences = held_out_sequences(seed) if held_out else training_sequences(seed)
        return sequences, np.full(len(sequences), LENGTH)

    def report(self, config: TrainConfig, model: GPT, params: Any, directory: Path | None) -> str:
        report = report_copying(model, params, held_out_sequences(config.seed), training_sequences(config.seed))
        if directory is not None:
            write_report(directory / REPORT, report)
        return format_report(report)


TASK = CopyTask()
