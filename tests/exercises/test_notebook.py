"""The notebook, in an environment that is made for it as the exercises' README says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxattn.exercises.catalog import steps
from jaxattn.exercises.notebook import FILE, describe, write_notebook

ROOT = Path(__file__).parents[2]
EXECUTE = """
import sys, jaxattn, nbformat
from nbclient import NotebookClient
book = nbformat.read(sys.argv[1], as_version=4)
assert all(not cell.get("outputs") for cell in book.cells)
NotebookClient(book, timeout=300).execute()
outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
print("".join(output["text"] for output in outputs if output.output_type == "stream"), end="")
"""


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_in_a_fresh_environment_with_the_solutions(tmp_path):
    def run(*command):
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    run(sys.executable, "-m", "venv", "fresh")
    python = str(tmp_path / "fresh" / "bin" / "python")
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{ROOT}[exercises]", "nbclient")
    assert "fresh" in run(python, "-c", "import jaxattn; print(jaxattn.__file__)")
    write_notebook(tmp_path / FILE, lambda step: step.solution)
    printed = run(python, "-c", EXECUTE, FILE)
    assert printed.splitlines() == [describe(name, None) for step in steps() for name in step.functions]
