import json
import sys
import textwrap

import jax
import numpy as np
import pytest

from jaxattn.exercises.catalog import step_of, steps
from jaxattn.exercises.checking import attempt, numbers, same
from jaxattn.exercises.command import main
from jaxattn.exercises.expected import EXERCISES
from jaxattn.exercises.learner import check_file, check_files, check_functions
from jaxattn.exercises.notebook import FILE
from tests.exercises.wrong_solutions import NAMED, RIGHT, UNNAMED

STEP_OF = {name: step for step in steps() for name in step.functions}
PARALLEL = """
    T, H, D = len(x), num_heads, w_query.shape[1] // num_heads
    split = lambda a: {split}
    q, k, v = (split(x @ w) for w in (w_query, w_key, w_value))
    s = jnp.where({mask}, q @ k.swapaxes(1, 2) / ({scale}), -1e30)
    c = jax.nn.softmax(s, axis={axis}) @ v
    c = {join}
    return {out}
"""
CHOICES = {
    "split": "a.reshape(T, H, D).swapaxes(0, 1)",
    "mask": "jnp.tril(jnp.ones((T, T), bool))",
    "scale": "D**0.5",
    "axis": "-1",
    "join": "c.swapaxes(0, 1).reshape(T, H * D)",
    "out": "c @ w_out + b_out",
}


def filled_in(directory, name, body):
    """Write a step's file with this body in one function, and return what is found."""
    step = STEP_OF[name]
    if body.startswith("@"):
        choice, _, value = body[1:].partition("=")
        body = textwrap.dedent(PARALLEL.format(**CHOICES | {choice: value})).strip()
    source = step.source.partition("# %% hints")[0]
    before, _, rest = source.partition(f"def {name}(")
    header, _, after = rest.partition("    # solution\n")
    _, _, after = after.partition("    # end\n")
    text = f"{before}def {name}({header}{textwrap.indent(body, '    ')}\n{after}"
    (directory / step.file).write_text(
        text.replace("import jax.numpy as jnp", "import jax\nimport jax.numpy as jnp", 1)
    )
    return check_file(directory, step)[name]


def test_solutions_are_right_and_templates_are_to_be_filled_in():
    for step in steps():
        for text, wrong in ((step.solution, None), (step.template, "is still to be filled in")):
            names = {}
            exec(text, names)
            assert check_functions(step, names) == dict.fromkeys(step.functions, wrong)
            assert "# solution" not in text
            assert "HINTS" not in text
        assert len(step.hints) == 3


@pytest.mark.parametrize(
    ("name", "body", "sentence"),
    [*NAMED[::4], *(pytest.param(*case, marks=pytest.mark.slow) for case in NAMED if case not in NAMED[::4])],
)
def test_each_known_mistake_is_named(tmp_path, name, body, sentence):
    assert sentence in (filled_in(tmp_path, name, body) or "nothing")


@pytest.mark.parametrize(("name", "body", "sentence"), UNNAMED)
def test_other_mistakes_are_answered_by_what_fails(tmp_path, name, body, sentence):
    assert sentence in (filled_in(tmp_path, name, body) or "nothing")


@pytest.mark.parametrize(
    ("name", "body"),
    [*RIGHT[::3], *(pytest.param(*case, marks=pytest.mark.slow) for case in RIGHT if case not in RIGHT[::3])],
)
def test_right_solutions_pass_in_any_style(tmp_path, name, body):
    assert filled_in(tmp_path, name, body) is None


def test_no_two_known_mistakes_compute_the_same_and_none_is_right():
    for exercise in EXERCISES.values():
        if exercise.reference is None:
            continue
        computed = {"what is right": [numbers(exercise.reference(*args)) for args in exercise.cases]}
        for sentence, mistakes in exercise.mistakes.items():
            for mistake in mistakes if isinstance(mistakes, tuple) else (mistakes,):
                results = [attempt(mistake, args) for args in exercise.cases]
                assert all(result is not None for result in results), (exercise.name, sentence)
                for other, others in computed.items():
                    assert not all(map(same, results, others)), (exercise.name, sentence, other)
                computed[f"{sentence}{len(computed)}"] = results


def test_references_agree_with_the_librarys_own_functions():
    import jaxattn

    x, *matrices = (np.random.default_rng(0).standard_normal(shape) for shape in ((5, 6), (6, 4), (6, 4), (6, 4)))
    params = {n: {"kernel": w} for n, w in zip(("query", "key", "value"), matrices, strict=True)}
    ours = jaxattn.SelfAttention(4).apply({"params": params}, jax.numpy.float32(x))
    np.testing.assert_allclose(EXERCISES["self_attention"].reference(x, *matrices), ours, atol=1e-5)


def test_the_climb_from_start_over_hints_to_the_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["exercises"])
    folder = tmp_path / "mine"
    assert main(["start", str(folder)]) == 0
    assert "13 steps written" in capsys.readouterr().out
    (folder / "01_scores.py").write_text("# my work")
    assert main(["start", str(folder)]) == 0
    assert "0 steps written, 13 were there" in capsys.readouterr().out
    assert (folder / "01_scores.py").read_text() == "# my work"
    for shown in (1, 2, 3, 3):
        assert main(["hint", str(folder), "1"]) == 0
        assert capsys.readouterr().out.count("\n") == shown + 1
    assert main(["solution", "01_scores"]) == 0
    (folder / "01_scores.py").write_text(capsys.readouterr().out)
    assert main(["check", str(folder), "1"]) == 0
    assert main(["check", str(folder), "02_softmax.py"]) == 1
    out = capsys.readouterr().out
    assert "✓ Step 1: raw scores" in out
    assert "softmax_rows is still to be filled in" in out
    assert "1 of 13 steps are done" in out
    assert json.loads((folder / "progress.json").read_text()) == {"done": [1], "hints": {"1": 3}}
    assert json.loads((folder / FILE).read_text())["cells"][0]["source"]


@pytest.mark.slow
def test_code_that_never_ends_exits_or_is_missing_is_one_sentence_and_the_others_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxattn.exercises.learner.SECONDS", 1.5)
    for step in steps():
        (tmp_path / step.file).write_text(step.solution)
    (tmp_path / "02_softmax.py").write_text("while True:\n    pass\n")
    (tmp_path / "03_context.py").write_text("import os\nos._exit(0)\n")
    (tmp_path / "04_projections.py").write_text("print('hello')\nraise SystemExit('bye')\n")
    (tmp_path / "12_two_dimensions.py").unlink()
    chosen = [step_of(name) for name in ("1", "2", "3", "4", "12")]
    findings = check_files(tmp_path, chosen)
    assert findings[1] == {"raw_scores": None}
    assert "takes longer than 1.5 seconds" in findings[2]["softmax_rows"]
    assert findings[3]["context"] == "ends the whole process, with status 0"
    assert findings[4]["self_attention"] == "raises SystemExit in line 2: bye"
    assert "is missing" in findings[12]["wrapper_of_width"]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["check", "nowhere"], "nowhere is no folder: write"),
        (["hint", ".", "14"], "there is no step 14: write a number from 1 to 13"),
        (["solution", "softmax"], "there is no step softmax"),
        (["quiz", "--questions", "0"], "--questions is 0"),
    ],
)
def test_bad_arguments_are_one_sentence(argv, sentence, capsys):
    assert main(argv) == 2
    assert sentence in capsys.readouterr().err


ANSWERS = [
    ("raw_scores", "return x @ x", "in line 20: dot_general requires contracting dimensions"),
    ("raw_scores", "return x @ x", "In a @ b, the last axis of a must be as long as the first axis of b"),
    ("raw_scores", "return x @ x", "It was called with x (6, 3)"),
    ("raw_scores", "return np.dot(x, x.T)", "Write import numpy as np at the top"),
    ("context", "return softmax_rows(weights) @ value", "copy the function from 02_softmax.py"),
    ("softmax_rows", "s = scores - scores.max(-1)\nreturn s", "Keep the summed axis as a column: keepdims=True"),
    (
        "batched_attention",
        "return jax.vmap(causal_attention)(x, w_query, w_key, w_value, rate, key)",
        "Give None in in_axes to each argument that all examples share",
    ),
    (
        "batched_attention",
        "return causal_attention(x, w_query, w_key, w_value, rate, key)",
        "in line 22, called in line 30",
    ),
    ("decode_step", "return torch.cat([keys, x])", "Write it with jnp and jax.nn in place of PyTorch"),
    ("causal_mask", "m = jnp.zeros((T, T))\nm[0, 0] = 1\nreturn m", "item assignment. Make the array in one go"),
]


@pytest.mark.parametrize(("name", "body", "sentence"), ANSWERS)
def test_an_error_is_answered_with_what_to_do_and_the_shapes_of_the_call(tmp_path, name, body, sentence):
    assert sentence in filled_in(tmp_path, name, body)


def test_steps_that_are_still_to_be_filled_in_are_one_line_and_a_right_one_leads_on(tmp_path, capsys):
    assert main(["start", str(tmp_path)]) == 0
    (tmp_path / "01_scores.py").write_text(steps()[0].solution)
    capsys.readouterr()
    assert main(["check", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("✓ Step 1")
    assert lines[1:3] == ["✗ Step 2: softmax (section 3.3.1)", "    softmax_rows is still to be filled in"]
    assert lines[3] == "✗ Still to be filled in: steps 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13"
    assert main(["check", str(tmp_path), "1"]) == 0
    assert capsys.readouterr().out.endswith(f"Next: {tmp_path / '02_softmax.py'}\n")


def test_broken_progress_is_refused_by_name(tmp_path, capsys):
    (tmp_path / "progress.json").write_text('{"done": "x"}')
    assert main(["hint", str(tmp_path), "1"]) == 2
    assert "progress.json does not hold the progress of exercises" in capsys.readouterr().err
