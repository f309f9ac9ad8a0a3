"""The package as users get it: what importing costs, annotations, extras, and the README."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import textwrap
import tomllib
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import export

from jaxattn import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention,
    SimpleSelfAttention,
    extras,
)
from jaxattn.extras import install_command, require
from jaxattn.kernels.native import library

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / ".github").glob("*.md")), *sorted((ROOT / "jaxattn").rglob("*.md"))]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def python(program):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120, check=False
    )


def test_importing_pulls_in_little_beyond_flax():
    finished = python("""
        import sys, flax.linen
        before = set(sys.modules)
        import jaxattn
        assert set(sys.modules) - before <= {"jaxattn"}, "imported before anything is used"
        from jaxattn import *
        print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
    """)
    assert finished.returncode == 0, finished.stderr
    core = {"jaxattn", "jax", "flax", "numpy", "jaxtyping", "wadler_lindig"}
    core |= {"typeguard"}  # jaxtyping imports it where it is installed
    assert set(finished.stdout.split()) - set(sys.stdlib_module_names) <= core


@pytest.mark.parametrize(
    "module",
    [
        SimpleSelfAttention(),
        SelfAttention(4),
        CausalAttention(4, 0.1),
        MultiHeadAttentionWrapper(2, 2, 0.1),
        MultiHeadAttention(2, 4, 0.1),
    ],
    ids=lambda module: type(module).__name__,
)
@pytest.mark.parametrize("T", [5, 150])
def test_every_stage_lowers_for_cpu_cuda_and_tpu(module, T):
    x = jnp.ones((2, T, 3))
    variables = module.init(jax.random.key(0), x)

    @jax.jit
    def gradient(variables, x, key):
        loss = lambda v: module.apply(v, x, deterministic=False, dropout_key=key).sum()  # noqa: E731
        return jax.grad(loss)(variables)

    arguments = variables, x, jax.random.key(0)
    # What runs here may be the native kernel, which is on CPUs alone; so the others get a program of their own.
    assert gradient.lower(*arguments).compile()
    exported = export.export(gradient, platforms=("cuda", "tpu"))(*arguments)
    assert exported.platforms == ("cuda", "tpu")
    # There, few scores fit in memory, and dense runs: no loops over blocks, no call of a foreign kernel.
    assert "stablehlo.while" not in exported.mlir_module()
    assert "custom_call" not in exported.mlir_module()


@pytest.mark.slow
def test_the_shapes_in_the_annotations_hold_at_run_time():
    finished = python("""
        import jax, jax.numpy as jnp, jaxtyping
        with jaxtyping.install_import_hook("jaxattn", "beartype.beartype"):
            import jaxattn
            from jaxattn import *
        from jaxtyping import TypeCheckError
        x, key = jnp.ones((2, 5, 3)), jax.random.key(0)
        for module in [SimpleSelfAttention(), SelfAttention(4), CausalAttention(4, 0.1),
                       MultiHeadAttentionWrapper(2, 2, 0.1), MultiHeadAttention(2, 4, 0.1)]:
            variables = module.init(key, x)
            module.apply(variables, x, deterministic=False, dropout_key=key, return_weights=True)
        scores = attention_scores(x, x)
        mask = masks.Causal() & masks.Segments(jnp.zeros((2, 5), int)) | masks.Lengths(jnp.array([1, 2]))
        weights = attention_weights(scores, mask)
        renormalized_weights(scores, mask)
        context_vectors(dropout(weights, 0.1, key), x)
        heads = jnp.ones((2, 5, 2, 3))
        dot_product_attention(heads, heads, heads, masks.SlidingWindow(2), bias=jnp.zeros((5, 5)), return_weights=True)
        blockwise = lambda x: dot_product_attention(x, x, x, masks.Causal(), implementation="blockwise")
        jax.vmap(jax.grad(lambda heads: blockwise(heads).sum()))(heads)
        assert_causal(lambda x: x, x)
        model = GPT(GPTConfig(11, 8, 1, 2, 4, 0.1))
        params = model.init(key, jnp.zeros(8, int))["params"]
        model.apply({"params": params}, jnp.zeros((3, 8), int), deterministic=False, dropout_key=key)
        generate(model, params, jnp.zeros(3, int), 2, key=key)
        try:
            attention_weights(jnp.zeros((2, 2), int))
        except TypeCheckError:
            print("checked")
    """)
    assert finished.stdout.strip() == "checked", finished.stderr[-3000:]


def public_functions():
    """All public functions and methods of the package, and `__call__`, each with its file."""
    for file in sorted((ROOT / "jaxattn").rglob("*.py")):
        module = ast.parse(file.read_text())
        classes = [node for node in module.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        for node in (node for owner in (module, *classes) for node in owner.body):
            if isinstance(node, ast.FunctionDef) and (node.name == "__call__" or not node.name.startswith("_")):
                yield file, node


def test_no_public_function_returns_any():
    returning_any = [
        f"{file.relative_to(ROOT)}:{function.lineno} {function.name}"
        for file, function in public_functions()
        if function.returns is not None and re.match(r"(typing\.)?Any\b", ast.unparse(function.returns))
    ]
    assert not returning_any


def test_no_private_part_of_jax_is_used():
    forbidden = re.compile(r"custom[_]partitioning|jax[.]_src")  # does not find itself
    files = [
        file
        for directory in ("jaxattn", "scripts", "tests")
        for file in (ROOT / directory).rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    ]
    assert len(files) > 50
    assert not [str(file) for file in files if forbidden.search(file.read_text(errors="replace"))]


def test_a_missing_extra_is_named_with_a_command_that_can_be_pasted(monkeypatch):
    monkeypatch.setattr(sys, "executable", str(ROOT / ".venv" / "bin" / "python"))  # pytest may run as python3
    monkeypatch.chdir(ROOT.parent)
    with pytest.raises(ImportError, match=r"no_such_package is not installed.*jaxattn\[train\]") as raised:
        require("no_such_package.module", extra="train")
    assert str(raised.value).endswith(f'python -m pip install -e "{ROOT}[train]"')
    monkeypatch.chdir(ROOT)
    assert install_command("tensorboard").endswith('python -m pip install -e ".[tensorboard]"')


def test_a_missing_dependency_of_an_installed_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "installed_package.py").write_text("import missing_dependency.part")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"^missing_dependency is not installed, which installed_package needs: "):
        require("installed_package", extra="train")


def test_an_installed_package_names_the_place_that_it_came_from(tmp_path, monkeypatch):
    """A copy without a project around it, as in site-packages."""
    monkeypatch.setattr(sys, "executable", "/usr/bin/python")
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "jaxattn" / "extras.py"))
    for source, where in (
        ({"url": "file:///a%20clone"}, "jaxattn[plot] @ file:///a%20clone"),
        ({"url": "https://h/r", "vcs_info": {"vcs": "git", "commit_id": "1f"}}, "jaxattn[plot] @ git+https://h/r@1f"),
        ({}, "jaxattn[plot]"),
    ):
        content = json.dumps(source)
        found = types.SimpleNamespace(read_text=lambda name, content=content: content)
        monkeypatch.setattr(importlib.metadata, "distribution", lambda name, found=found: found)
        assert install_command("plot").endswith(f'python -m pip install "{where}"')


def test_errors_name_extras_that_exist():
    named = {
        extra for file in (ROOT / "jaxattn").rglob("*.py") for extra in re.findall(r'extra="(\w+)"', file.read_text())
    }
    assert "train" in named <= set(EXTRAS)


def test_the_readme_names_each_extra_once():
    sentence = README.partition("Extras: ")[2].partition(".\n")[0]
    assert sorted(re.findall(r"`(\w+)`", sentence)) == sorted(EXTRAS)


def test_the_readme_has_at_most_120_lines():
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_exist(page):
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("program", [part.partition("```")[0] for part in README.split("```python\n")[1:]])
def test_the_readmes_examples_print_what_their_comments_say(program):
    comments = [line.partition("# ")[2] for line in program.splitlines() if line.startswith("print")]
    if library.missing():  # where no compiler was
        comments = [comment.replace("native", "blockwise") for comment in comments]
    finished = python(program)
    printed = finished.stdout.splitlines()
    assert len(printed) == len(comments) > 0, finished.stderr
    assert all(comment.startswith(line) for comment, line in zip(comments, printed, strict=True))
