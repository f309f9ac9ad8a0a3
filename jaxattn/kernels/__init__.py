"""Implementations of attention, one file each: `dense`, `blockwise`, `cudnn`.

Each has `unsupported(call) -> str | None`, why it cannot compute a call, and takes one `AttentionCall`.
"""
