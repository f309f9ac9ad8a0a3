"""Attention that you can read in one sitting, import the same afternoon, and never outgrow, in JAX and Flax.

The public names are listed in `jaxattn/public.py`. They are imported when the first of them is used, so that the
command `jaxattn` can handle Ctrl-C before it imports JAX.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxattn.public import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name.startswith("__") and name != "__all__":
        raise AttributeError(f"module 'jaxattn' has no attribute {name!r}")
    if importlib.util.find_spec(f"jaxattn.{name}"):
        return importlib.import_module(f"jaxattn.{name}")
    try:
        value = getattr(importlib.import_module("jaxattn.public"), name)
    except AttributeError:
        raise AttributeError(f"module 'jaxattn' has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *importlib.import_module("jaxattn.public").__all__})
