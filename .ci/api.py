"""Build the API pages from the docstrings: `python .ci/api.py DIRECTORY`. Warnings and dead references are errors."""

import pkgutil
import re
import sys
import warnings
from pathlib import Path

import pdoc

import jaxattn

warnings.simplefilter("error")
# Defaults of Flax fields that are functions of jax, annotated with types that jax imports for type checkers only.
warnings.filterwarnings("ignore", r"Error parsing type annotation .* for jaxattn\S*_init\.")

directory = Path(sys.argv[1])
names = {module.name for module in pkgutil.iter_modules(jaxattn.__path__)} - {"public"}  # which is jaxattn's own page
modules = sorted(f"jaxattn.{name}" for name in names)
pdoc.render.configure(docformat="google")
pdoc.pdoc(
    "jaxattn", *(name for name in modules if name.split(".")[1] not in jaxattn.__all__), output_directory=directory
)

pages = sorted(directory.rglob("*.html"))
dead = {name for page in pages for name in re.findall(r"<code>(jaxattn\.[\w.]+)(?:\(\))?</code>", page.read_text())}
if dead:
    sys.exit(f"docstrings refer to what does not exist: {', '.join(sorted(dead))}")
print(f"{len(pages)} pages in {directory}, no warning")
