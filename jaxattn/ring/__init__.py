"""Attention over sequences that are longer than one device holds: the tokens of one sequence are sharded over devices.

- `attention.py`: `ring_attention` checks the arguments (`checks.py`), shards them, and runs a strategy.
- `order.py`: which tokens each device computes, so that all have the same work.
- `parts.py`: the part of a call that belongs to some queries and some keys.
- `passing.py`: strategy "ring", in which keys and values travel from device to device.
- `gathering.py`: strategy "all_gather", in which each device gathers all keys and values.
- `exchanging.py`: strategy "all_to_all", in which each device gets all tokens of some heads.
- `sending.py`: exchanges between devices.
"""

from jaxattn.ring.attention import Ring, ring_attention
from jaxattn.ring.order import zigzag_order

__all__ = ["Ring", "ring_attention", "zigzag_order"]
