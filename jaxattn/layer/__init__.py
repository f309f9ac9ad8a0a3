"""Attention layers for real models: one set of rules, with a thin face for Flax Linen and one for NNX.

heads.py     the sizes of a layer, and what happens to single heads
call.py      the arguments of a call, checked
decoding.py  the keys and values of earlier calls
forward.py   the steps of a call, in order
linen.py     AttentionLayer; its twin in NNX is `jaxattn.nnx.MultiHeadAttention`
latent.py    the rules of latent attention; latent_linen.py is its Linen face
"""

from jaxattn.layer.call import checked_lengths
from jaxattn.layer.heads import RelativeBias
from jaxattn.layer.latent_linen import LatentAttention
from jaxattn.layer.linen import AttentionLayer

__all__ = ["AttentionLayer", "LatentAttention", "RelativeBias", "checked_lengths"]
