"""A hundred and more wrong solutions are named or answered by what fails, and right ones pass in unusual styles."""

import pytest

from jaxattn.exercises.catalog import steps
from jaxattn.exercises.learner import check_functions
from tests.exercises.blind_solutions import PLAIN, RIGHT, WRONG, Blind, solutions

# Many small functions that each compile something.
pytestmark = pytest.mark.slow

GIVEN = next(step for step in steps() if step.number == 7).template.partition("def batched_attention")[0]


def finding(blind: Blind) -> str | None:
    """Define the function below what its template imports and gives, and check it."""
    names: dict = {"__name__": "learner"}
    exec(f"{GIVEN}\nimport jaxattn\n{blind.code}", names)
    step = next(step for step in steps() if blind.name in step.functions)
    return check_functions(step, {blind.name: names[blind.name]})[blind.name]


def title(blind: Blind) -> str:
    return f"{blind.name}: {blind.did}"


@pytest.mark.parametrize("blind", solutions(WRONG), ids=title)
def test_what_a_learner_did_wrong_is_said(blind):
    assert blind.said
    assert blind.said in (finding(blind) or "nothing")


@pytest.mark.parametrize("blind", solutions(PLAIN) + solutions(RIGHT), ids=title)
def test_a_right_solution_passes_however_it_is_written(blind):
    assert finding(blind) is None
