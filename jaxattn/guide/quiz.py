"""The quiz on the page: the questions of `jaxattn exercises quiz`, with all their explanations."""

import functools
from typing import NamedTuple

from jaxattn.exercises.quiz import QUESTIONS


class Answer(NamedTuple):
    """One answer to choose, why it is right or wrong, and which of the two it is."""

    text: str
    why: str
    right: bool


class Asked(NamedTuple):
    """A question and its answers, in the order in which the page shows them."""

    text: str
    answers: list[Answer]


@functools.cache
def quiz() -> tuple[Asked, ...]:
    """Compute all questions; the answers' order is random, and always the same."""
    questions = (question() for question in QUESTIONS)
    return tuple(Asked(each.text, [Answer(*answer) for answer in each.shuffled(0)]) for each in questions)
