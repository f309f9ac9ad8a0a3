"""Random arrays and masks, and the kernels that all tests of kernels run against."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxattn import dot_product_attention, masks
from jaxattn.kernels import transforms
from jaxattn.kernels.call import checked_call
from jaxattn.kernels.native import library


def small(*args, **options):
    """Run the kernel for few scores, at any size."""
    context, *lse = transforms.attend(dataclasses.replace(checked_call(*args, **options), implementation="small"))
    return (context, *lse) if lse else context


KERNELS = {
    "dense": functools.partial(dot_product_attention, implementation="dense"),
    "blockwise": functools.partial(dot_product_attention, implementation="blockwise"),
    "small": small,
}
if library.missing() is None:
    KERNELS["native"] = functools.partial(dot_product_attention, implementation="native")
MASKS = ("none", "causal", "offsets", "window", "sinks", "segments", "scattered", "lengths", "array", "per head")
POSITION_MASKS = ("two-sided", "chunked", "prefix")


def and_slowly(*values):
    """Return parameters that are tested beside the slow tests alone: default tests take a sample of them."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow) for value in values
    ]


@contextlib.contextmanager
def patched(*settings):
    """Set `(module, name, value)`, and compile with these values what was compiled with others."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in settings:
            patch.setattr(module, name, value)
        jax.clear_caches()
        yield
    jax.clear_caches()


def draw(seed, *shapes, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def draw_heads(seed, batch=(2,), T=5, S=7, H=6, K=3, D=4, D_v=8, dtype=jnp.float32):
    """Return query, key and value."""
    return draw(seed, (*batch, T, H, D), (*batch, S, K, D), (*batch, S, K, D_v), dtype=dtype)


def draw_mask(kind, batch, T, S, H, seed):
    rng = np.random.default_rng(seed)
    ids = jnp.asarray(np.sort(rng.integers(0, 4, (*batch, T)), -1))
    key_ids = jnp.asarray(np.sort(rng.integers(0, 4, (*batch, S)), -1))
    lengths = jnp.asarray(rng.integers(0, S + 1, batch))
    return {
        "none": None,
        "causal": masks.Causal(S - T),
        "offsets": masks.Causal(jnp.asarray(rng.integers(-3, S + 1, batch))),
        "window": masks.SlidingWindow(int(rng.integers(1, 40)), S - T),
        "sinks": masks.Causal(S - T) & (masks.SlidingWindow(9, S - T) | masks.Lengths(jnp.asarray(3))),
        "two-sided": masks.SlidingWindow(
            7, jnp.asarray(rng.integers(-3, S + 1, batch)), right=int(rng.integers(0, 40))
        ),
        "chunked": masks.Causal(S - T) & masks.Chunked(int(rng.integers(1, 60)), S - T),
        "prefix": masks.Causal(S - T) | masks.Prefix(lengths),
        "segments": masks.Segments(ids, key_ids) & masks.Causal(S - T),
        "scattered": masks.Segments(ids[..., ::-1], key_ids) | masks.SlidingWindow(2),
        "lengths": masks.Lengths(lengths),
        "array": jnp.asarray(rng.random((T, S)) < 0.1),
        "per head": jnp.asarray(rng.random((*batch, H, T, S)) < 0.5),
    }[kind]


def kept_factors(batch, H, T, S, rate, key):
    """What dropout multiplies the weights with: which entries the dense kernel keeps, and 1 / (1 - rate) for these.

    Statistics of the entries are tested in `test_attention.py`. With queries of 0 and the identity for values, the
    context is the weights after dropout, and all are alike before it.
    """
    query, keys = np.zeros((*batch, T, H, 1), np.float32), np.zeros((*batch, S, 1, 1), np.float32)
    identity = np.broadcast_to(np.eye(S, dtype=np.float32)[:, None], (*batch, S, 1, S))
    attend = jax.jit(functools.partial(KERNELS["dense"], dropout_rate=rate))
    kept = attend(query, keys, identity, dropout_key=key)  # (..., T, H, S)
    return np.where(np.swapaxes(kept, -3, -2) > 0, 1 / (1 - rate), 0)


def lowered(platform, T, S=None, H=8, mask=None, dtype=jnp.bfloat16, **options):
    """Return the program that runs on a platform."""
    query, key = (jax.ShapeDtypeStruct((2, n, H, 64), dtype) for n in (T, S or T))
    run = jax.jit(lambda q, k, v: dot_product_attention(q, k, v, mask, **options))
    return export.export(run, platforms=[platform])(query, key, key).mlir_module()


def relative_error(came, expected):
    """Return the largest difference, relative to the largest number expected."""
    return np.abs(np.asarray(came, np.float64) - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-30)
