"""Every equation of the page holds: its result follows from its operands by its rule, in float64."""

import itertools

import numpy as np
import pytest

from jaxattn.guide.rules import evaluate
from jaxattn.guide.section import setting
from jaxattn.guide.sections import make_sections
from jaxattn.guide.story import book_story, random_story


def settings(section):
    """Every setting of a section's switches."""
    names = [switch.name for switch in section.switches]
    for values in itertools.product(*([value for value, _ in switch.options] for switch in section.switches)):
        yield dict(zip(names, values, strict=True))


def array(section, name, chosen):
    numbers = section.numbers[name]
    return numbers.values[setting(**{switch: chosen[switch] for switch in numbers.switches})]


def taken(section, chosen):
    """The equations that are taken in a setting."""
    return [e for e in section.equations if all(chosen[name] in values for name, values in e.when.items())]


@pytest.mark.parametrize("story", [book_story(), random_story("fox fox 🦊", 3)], ids=["book", "own"])
def test_every_result_follows_from_its_operands(story):
    for section in make_sections(story):
        for chosen in settings(section):
            for equation in taken(section, chosen):
                result = array(section, equation.result, chosen)
                operands = [array(section, name, chosen) for name in equation.operands]
                expected = evaluate(equation, operands, result.shape)
                message = f"{section.id}, {chosen}: {equation.name}"
                # Sums of a trained head's large products are rounded by their size in float32.
                largest = max(1, np.abs(expected[np.isfinite(expected)]).max())
                np.testing.assert_allclose(result, expected, atol=2e-6 * largest, err_msg=message)


def test_an_array_results_from_one_equation_and_what_is_given_says_where_it_comes_from():
    for section in make_sections(book_story()):
        for chosen in settings(section):
            results = [equation.result for equation in taken(section, chosen)]
            assert len(results) == len(set(results))
            known = {name for name in section.numbers if section.numbers[name].note}
            for equation in taken(section, chosen):
                assert set(equation.operands) <= known, (section.id, equation)
                known.add(equation.result)
            assert section.arcs in known
