"""Questions on the chapter; each wrong answer is explained with numbers that the library computes when it is asked."""

import random
from collections.abc import Callable

from jaxattn.cli import check_number
from jaxattn.exercises.quiz import many_heads, one_head
from jaxattn.exercises.quiz.question import Question
from jaxattn.training.progress import say

QUESTIONS: tuple[Callable[[], Question], ...] = one_head.QUESTIONS + many_heads.QUESTIONS


def ask(number: int, seed: int | None, read: Callable[[str], str] = input) -> int:
    """Ask some questions in the terminal; return the exit status."""
    check_number("--questions", number, 1, len(QUESTIONS))
    seed = random.randrange(2**31) if seed is None else seed
    chosen = sorted(random.Random(seed).sample(range(len(QUESTIONS)), number))
    right = 0
    for count, index in enumerate(chosen, 1):
        question = QUESTIONS[index]()
        answers = question.shuffled(seed)
        say(f"\n{count}. {question.text}")
        for name, (answer, _, _) in zip("abcd", answers, strict=False):
            say(f"   {name}) {answer}")
        letter = _letter("abcd"[: len(answers)], read)
        if letter is None:
            break
        _, why, is_right = answers["abcd".index(letter)]
        right += is_right
        right_answer, because = question.right
        say(f"Right. {why}" if is_right else f"No. {why} The answer: “{right_answer}”. {because}")
    say(f"\n{right} of {number} right")
    return 0


def _letter(letters: str, read: Callable[[str], str]) -> str | None:
    """Read an answer until it is one; None where the input ends."""
    while True:
        try:
            answer = read(f"{letters[0]}–{letters[-1]}? ").strip().lower()
        except EOFError:
            return None
        if len(answer) == 1 and answer in letters:
            return answer
        say(f"Write one letter, {letters[0]} to {letters[-1]}.")
