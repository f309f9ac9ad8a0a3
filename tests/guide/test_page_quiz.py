"""The quiz on the page."""

from jaxattn.exercises.quiz import QUESTIONS
from jaxattn.guide.page import render_page, render_sections
from jaxattn.guide.quiz import Answer, Asked, quiz
from jaxattn.guide.story import random_story

SMALL = [
    Asked("One & one?", [Answer("<3>", "It is 2.", False), Answer("2", "Counted.", True)]),
    Asked("Two?", [Answer("yes", "Indeed.", True), Answer("no", "It is.", False)]),
]


def test_the_page_asks_all_questions_of_the_quiz_once_with_one_right_answer_each(book_page):
    assert len(quiz()) == len(QUESTIONS) >= 30
    assert len({question.text for question in quiz()}) == len(QUESTIONS)
    for question in quiz():
        assert sum(answer.right for answer in question.answers) == 1
        assert len({answer.text for answer in question.answers}) == len(question.answers) >= 2
        assert all(answer.why for answer in question.answers)
    assert book_page.count('class="question"') == len(QUESTIONS)
    assert 'class="question"' not in render_page(random_story("a b", 0))


def test_the_right_answer_has_no_fixed_place():
    assert {[answer.right for answer in question.answers].index(True) for question in quiz()} >= {0, 1, 2}


def test_an_answer_is_explained_and_the_first_one_counts(open_page):
    browser = open_page(render_sections([], None, SMALL))
    questions = browser.find_elements("css selector", ".question")
    assert [question.find_element("tag name", "summary").text for question in questions] == ["One & one?", "Two?"]
    questions[0].find_element("tag name", "summary").send_keys(" ")
    wrong, right = questions[0].find_elements("css selector", ".answer")
    assert wrong.text == "<3>"
    wrong.find_element("tag name", "summary").click()
    assert wrong.text == "<3>\nNo. It is 2."
    score = browser.find_element("id", "quiz-score")
    right.find_element("tag name", "summary").click()
    assert right.text == "2\nRight. Counted."
    assert score.text == "Right at the first answer: 0 of 1; 1 to go"
    questions[1].find_element("tag name", "summary").click()
    questions[1].find_element("css selector", ".answer summary").click()
    browser.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")
    assert score.text == "Right at the first answer: 1 of 2; 0 to go"
