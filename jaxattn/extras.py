"""Packages that only some parts need: imported where they are used, and asked for by name where they are missing."""

import importlib
from typing import Any


def require(module: str, extra: str) -> Any:
    """Import a module of an optional package, or raise an ImportError that names the extra to install.

    Example:
        >>> from jaxattn.extras import require
        >>> require("json", extra="train").dumps({})
        '{}'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise ImportError(f'{package} is not installed: write pip install "jaxattn[{extra}]"') from error
