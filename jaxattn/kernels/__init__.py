"""Implementations of attention, one file each, and what they share.

    call.py                  the arguments of one call, checked
    dense.py                 the steps of `functional.py` for many heads: read this first
    blockwise.py             forward, block by block, in linear memory
    blockwise_backward.py    its gradients
    small.py                 dense, with the residuals of blockwise, for few scores
    cudnn.py                 NVIDIA's kernels
    blocks.py, plan.py, tiles.py, exp2.py    how blockwise cuts attention into blocks
    transforms.py            what `jax.grad`, `jax.vmap` and several devices do to a call

Each implementation has `unsupported(call) -> str | None`: why it cannot compute a call, or None.
"""
