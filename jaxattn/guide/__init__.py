"""The four stages made visible: every intermediate by name, as figures, and as a page.

`show(module, variables, x, tokens=...)` draws a stage in a notebook. It needs the extra `guide`.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """Import `show` where it is first used, because it needs packages that the library does not."""
    if name != "show":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jaxattn.guide.notebook import show

    return show
