"""Parameters to and from other people's layers, as plain dictionaries of arrays.

`from_x` makes parameters for this library, `to_x` makes those of the other side, and one undoes the other. Nothing here
needs PyTorch: a `state_dict` is a dictionary of tensors or NumPy arrays. A parameter that is missing, left over, or of
the wrong shape or type raises a `ValueError` that names it.
"""

from jaxattn.models.convert.book import from_book, to_book
from jaxattn.models.convert.flax import from_linen, to_linen
from jaxattn.models.convert.torch import from_torch, to_torch
from jaxattn.models.convert.transformers import from_transformers

__all__ = ["from_book", "from_linen", "from_torch", "from_transformers", "to_book", "to_linen", "to_torch"]
