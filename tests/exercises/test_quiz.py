import pytest

from jaxattn.exercises import quiz


def test_about_thirty_questions_have_one_right_answer_and_explain_the_others():
    questions = [make() for make in quiz.QUESTIONS]
    assert len(questions) >= 30
    assert len({question.text for question in questions}) == len(questions)
    for question in questions:
        answers = question.shuffled(0)
        assert 2 <= len(answers) <= 4
        assert len({answer for answer, _, _ in answers}) == len(answers)
        assert all(len(why) > 10 for _, why, _ in answers)
        assert sum(right for _, _, right in answers) == 1


@pytest.mark.parametrize("knows", [True, False])
def test_the_terminal_explains_each_answer_and_counts(knows, capsys):
    questions = {make().text: make() for make in quiz.QUESTIONS}

    def read(prompt):
        text = capsys.readouterr().out
        shown.append(text)
        question = next(q for q in questions.values() if q.text in text)
        return next(
            letter for letter, (_, _, right) in zip("abcd", question.shuffled(3), strict=False) if right == knows
        )

    shown = []
    assert quiz.ask(5, 3, read) == 0
    last = capsys.readouterr().out
    assert f"{5 if knows else 0} of 5 right" in last
    assert ("Right." in last) == knows


def test_another_answer_is_asked_for_again_and_the_end_of_the_input_ends_the_quiz(capsys):
    def read(prompt):
        if prompts.append(prompt) or len(prompts) > 1:
            raise EOFError
        return "right"

    prompts = []

    assert quiz.ask(3, 0, read) == 0
    out = capsys.readouterr().out
    assert "Write one letter, a to " in out
    assert "0 of 3 right" in out
