"""Implementations of attention, one file each, and what they share.

    call.py                  the arguments of one call, checked, and the letters of all shapes
    dense.py                 the steps of `functional.py` for many heads
    exp2.py, blocks.py, tiles.py, plan.py    how attention is cut into blocks, and which are skipped
    blockwise.py             attention block by block, in linear memory
    blockwise_backward.py    its gradients
    small.py                 dense, with the residuals of blockwise, for few scores
    cudnn.py                 NVIDIA's kernels
    transforms.py            what `jax.grad`, `jax.vmap` and several devices do to a call

Each implementation has `unsupported(call) -> str | None`: why it cannot compute a call, or None.
"""
