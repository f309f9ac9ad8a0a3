"""Implementations of attention, one file each, and what they share.

    call.py                  the arguments of one call, checked, and the letters of all shapes
    choice.py, platforms.py  which kernel runs, and where
    dense.py                 the steps of `functional.py` for many heads
    logits.py, diagonals.py                  soft cap, bias, mask and sinks; a bias by distance in linear memory
    softmax.py, online.py, exp2.py           how scores become weights, at once and block by block
    blocks.py, tiles.py, plan.py             how attention is cut into blocks, and which are skipped
    blockwise.py             attention block by block, in linear memory
    blockwise_backward.py    its gradients
    few_queries.py           its short way for few queries against many keys
    small.py                 dense, with the residuals of blockwise, for few scores
    native/                  blockwise attention in C++ for CPUs
    cudnn.py                 NVIDIA's kernels
    transforms.py            what `jax.grad`, `jax.vmap`, several devices and several platforms do to a call

Each implementation has `unsupported(call) -> str | None`: why it cannot compute a call, or None.
"""
