"""Packages that only some parts need: imported where they are used, with an error that says how to install them."""

import importlib
import importlib.metadata
import json
import os
import shlex
import sys
from pathlib import Path
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import a module of an optional package, or raise an ImportError with the command that installs the extra.

    Example:
        >>> require("json", extra="train").dumps({})
        '{}'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        missing = error.name or package
        reason = f"{missing} is not installed"
        if missing.partition(".")[0] != package:
            reason += f", which {package} needs"
        raise ImportError(f"{reason}: it comes with jaxattn[{extra}], so write {install_command(extra)}") from error


def install_command(extra: str) -> str:
    """Return a command for the shell that adds an extra to this installation, which came from no package index."""
    clone = Path(__file__).resolve().parent.parent
    if (clone / "pyproject.toml").exists():
        where = "." if clone == Path.cwd() else clone
        return f"{python()} -m pip install -e {_quote(f'{where}[{extra}]')}"
    try:
        source = json.loads(importlib.metadata.distribution("jaxattn").read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        source = {}
    version = source.get("vcs_info", {})
    url = f"{version['vcs']}+{source['url']}@{version['commit_id']}" if version else source.get("url")
    return f"{python()} -m pip install {_quote(f'jaxattn[{extra}]' + (f' @ {url}' if url else ''))}"


def python() -> str:
    """Return this Python as one types it in a shell, below the working directory as `.venv/bin/python`."""
    path = Path(sys.executable or "python")
    below = path.is_relative_to(Path.cwd()) and path.parent != Path.cwd()
    return shlex.quote(os.path.relpath(path) if below else str(path))


def _quote(text: str) -> str:
    """Quote as documentation does, with double quotes, if the shell takes all of the text literally in them."""
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'
