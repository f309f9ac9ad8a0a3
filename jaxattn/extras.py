"""Packages that only some parts need: imported where they are used, with an error that names the extra to install."""

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import a module of an optional package, or raise an ImportError that names the extra.

    Example:
        >>> require("json", extra="train").dumps({})
        '{}'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise ImportError(f'{package} is not installed: write pip install "jaxattn[{extra}]"') from error
