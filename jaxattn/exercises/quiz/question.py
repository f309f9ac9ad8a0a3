"""A question, and the numbers that the questions are about."""

import dataclasses
import functools
import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxattn.exercises.numbers import BOOK


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with one right answer.

    Args:
        text: what is asked.
        right: the right answer, and why it is right.
        wrong: other answers, and for each why it is wrong, with numbers.
    """

    text: str
    right: tuple[str, str]
    wrong: Mapping[str, str]

    def shuffled(self, seed: int) -> list[tuple[str, str, bool]]:
        """Return all answers in a random order: the answer, its explanation, and whether it is right."""
        answers = [(*self.right, True), *((answer, why, False) for answer, why in self.wrong.items())]
        random.Random(f"{seed} {self.text}").shuffle(answers)
        return answers


@functools.cache
def book() -> dict[str, Any]:
    """Return the book's six words, their vectors and the trained matrices, as arrays."""
    matrices = {name: np.array(kernel, np.float32) for name, kernel in BOOK["trainable"].items()}
    return {"words": BOOK["sentence"], "x": np.array(BOOK["inputs"], np.float32), **matrices}


def listed(numbers: Any, digits: int = 2) -> str:
    """Format a vector."""
    return "[" + ", ".join(f"{float(number):.{digits}f}" for number in numbers) + "]"
