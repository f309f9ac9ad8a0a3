"""The compiled library: where it is, and why it is missing."""

import ctypes
import functools
import importlib.util

import jax

TARGETS = ("jaxattn_forward", "jaxattn_backward", "jaxattn_bias_gradient")


def missing() -> str | None:
    """Return why the library cannot be used, or None."""
    found = _load()
    return found if isinstance(found, str) else None


def instruction_set() -> str | None:
    """Return the name of the instruction set that the library uses on this processor, or None without a library."""
    library = _load()
    if isinstance(library, str):
        return None
    library.jaxattn_instruction_set.restype = ctypes.c_char_p
    return str(library.jaxattn_instruction_set().decode())


@functools.cache
def _load() -> ctypes.CDLL | str:
    """Load the library and register its calls; return the library, or why there is none."""
    found = importlib.util.find_spec("jaxattn.kernels.native._attention")
    if found is None or found.origin is None:
        return "was not compiled when jaxattn was installed: install a C++ compiler, then reinstall jaxattn"
    try:
        library = ctypes.CDLL(found.origin)
        for name in TARGETS:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    except (OSError, AttributeError, RuntimeError, ValueError) as error:
        return f"could not be loaded ({error}): reinstall jaxattn"
    return library
