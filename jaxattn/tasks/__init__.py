"""What a run learns: a task provides the data, checks the configuration, and may report what was learned.

To add a task, write a module that defines `TASK` and add a line to `TASKS`.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from jaxattn.models.gpt import GPT
from jaxattn.training.text import Corpus
from jaxattn.training.tokenizer import Tokenizer

if TYPE_CHECKING:
    from jaxattn.training.config import TrainConfig

# The name on the command line, and the module.
TASKS = {
    "text": "jaxattn.tasks.text",
    "pronouns": "jaxattn.tasks.pronouns",
    "copy": "jaxattn.tasks.copy",
}


class Data(NamedTuple):
    """The training and held-out text as tokens, the tokenizer, and what the user calls the text and one token."""

    corpus: Corpus
    tokenizer: Tokenizer
    name: str
    unit: str


class Task:
    """The interface. Every method but `open_data` has a default."""

    # Values of `TrainConfig` fields that suit this task better than the defaults.
    preset: ClassVar[Mapping[str, Any]] = {}

    def check(self, config: "TrainConfig") -> None:
        """Raise a ValueError that names the option if the task cannot be learned with this configuration."""

    def fingerprints(self, config: "TrainConfig") -> list[str]:
        """Identify the data, so that a resumed run continues on the same; nothing has been written yet.

        Raises:
            OSError: a file cannot be read.
            ValueError: there is too little text.
        """
        return []

    def open_data(self, config: "TrainConfig", directory: Path) -> Data:
        """Return the data; keep files of tokens and the tokenizer in the directory, and reuse those already there."""
        raise NotImplementedError

    def report(self, config: "TrainConfig", model: GPT, params: Any, directory: Path | None) -> str | None:
        """Say what the trained model has learned, beyond its loss, and save it if there is a directory."""
        return None


def find_task(name: str) -> Task:
    """Return the task of that name.

    Raises:
        ValueError: there is no task of that name.
    """
    if name not in TASKS:
        raise ValueError(f"--task is {name!r}, but must be one of {', '.join(TASKS)}")
    task: Task = importlib.import_module(TASKS[name]).TASK
    return task
