"""The steps: what learners get, their hints, and a solution of each."""

import ast
import dataclasses
import functools
import re
from importlib import resources

_SOLUTION = re.compile(r"^( *)# solution\n(.*?)^ *# end\n", re.DOTALL | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Step:
    """One file to fill in, as cells: `# %%` begins one of code, `# %% [markdown]` one of text."""

    number: int
    file: str
    source: str

    @property
    def title(self) -> str:
        """The heading, without its mark."""
        return self.source.split("\n")[1].removeprefix("# # ")

    @property
    def hints(self) -> tuple[str, ...]:
        """Three hints, each saying more than the one before."""
        assignment = ast.parse(self.source.partition("# %% hints\n")[2]).body[0]
        assert isinstance(assignment, ast.Assign)
        return tuple(ast.literal_eval(assignment.value))

    @property
    def solution(self) -> str:
        """The file, filled in."""
        return _SOLUTION.sub(lambda found: found[2], self._without_hints())

    @property
    def template(self) -> str:
        """The file, to be filled in."""
        return _SOLUTION.sub(
            lambda found: f"{found[1]}raise NotImplementedError  # your code here\n", self._without_hints()
        )

    @property
    def functions(self) -> tuple[str, ...]:
        """The names of the functions to fill in."""
        parts = re.split(r"^def (\w+)", self.source, flags=re.MULTILINE)
        return tuple(name for name, body in zip(parts[1::2], parts[2::2], strict=True) if "# solution" in body)

    def _without_hints(self) -> str:
        return self.source.partition("# %% hints\n")[0].rstrip() + "\n"


@functools.cache
def steps() -> tuple[Step, ...]:
    """Return all steps in their order."""
    files = sorted(resources.files("jaxattn.exercises.steps").iterdir(), key=lambda file: file.name)
    names = [file for file in files if re.fullmatch(r"s\d\d_\w+\.py", file.name)]
    return tuple(Step(int(file.name[1:3]), file.name[1:], file.read_text("utf-8")) for file in names)


def step_of(name: str) -> Step:
    """Return the step with a number or the name of a file.

    Raises:
        ValueError: there is none.
    """
    for step in steps():
        if name in (str(step.number), step.file, step.file.removesuffix(".py")):
            return step
    raise ValueError(f"there is no step {name}: write a number from 1 to {len(steps())}")
