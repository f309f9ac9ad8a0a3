"""An attention layer in float64 NumPy, from the papers: it reads the fields of a layer and calls none of it."""

import math

import jax
import numpy as np
from oracle import attend

from jaxattn import masks
from jaxattn.rotary import LinearScaling, Llama3Scaling, Rotary, YarnScaling


def output(layer, params, x, *, context=None, positions=None, allowed=None, factors=None):
    """The output `(..., T, out_features)`; `allowed` is combined with the layer's mask, `factors` are dropout's."""
    params, x = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params), np.asarray(x, np.float64)
    H, K = layer.num_heads, layer.num_kv_heads or layer.num_heads
    source = x if context is None else np.asarray(context, np.float64)
    T, S = x.shape[-2], source.shape[-2]
    heads = {}
    for name, vectors, count in (("query", x, H), ("key", source, K), ("value", source, K)):
        projected = dense(params[name], vectors)
        heads[name] = projected.reshape(*vectors.shape[:-1], count, -1)
    for name in ("query", "key"):
        if layer.normalize_heads:
            scale = params[f"{name}_norm"]["scale"]
            heads[name] = normalized(heads[name], scale, layer.normalize_heads, layer.norm_epsilon)
        rotary = layer.rotary if layer.rotary_base is None else Rotary(layer.rotary_base)
        if rotary is not None:
            heads[name] = rotated(heads[name], np.arange(T) if positions is None else positions, rotary)
    mask = unmasked(layer.mask, T, S)
    options = {"scale": layer.scale, "soft_cap": layer.soft_cap, "sinks": params.get("sinks"), "factors": factors}
    bias = position_bias(layer, params, T, S)
    mask = mask if allowed is None else mask & np.asarray(allowed)
    vectors, _ = attend(heads["query"], heads["key"], heads["value"], mask, bias=bias, **options)
    return dense(params["out"], vectors.reshape(*x.shape[:-1], -1))


def dense(params, vectors):
    return vectors @ params["kernel"] + params.get("bias", 0.0)


def normalized(heads, scale, kind, epsilon):
    if kind in (True, "layer"):
        heads = heads - heads.mean(-1, keepdims=True)
    heads = heads / np.sqrt((heads**2).mean(-1, keepdims=True) + epsilon)
    return heads * (1 + scale if kind == "rms_plus_one" else scale)


def rotated(heads, positions, rotary):
    """Pairs of numbers as complex ones, times e^(i · angle)."""
    width = rotary.width or heads.shape[-1]
    part, rest = heads[..., :width], heads[..., width:]
    first, second = (
        (part[..., ::2], part[..., 1::2]) if rotary.interleaved else (part[..., : width // 2], part[..., width // 2 :])
    )
    speeds, magnitude = pair_speeds(width, rotary)
    angles = np.asarray(positions, np.float64)[..., None, None] * speeds
    product = magnitude * (first + 1j * second) * np.exp(1j * angles)
    if rotary.interleaved:
        turned = np.stack([product.real, product.imag], -1).reshape(part.shape)
    else:
        turned = np.concatenate([product.real, product.imag], -1)
    return np.concatenate([turned, rest], -1)


def pair_speeds(width, rotary):
    """The speed of each pair, and the factor on all."""
    speeds, scaling = rotary.base ** (-2 * np.arange(width // 2) / width), rotary.scaling
    if scaling is None:
        return speeds, 1.0
    if isinstance(scaling, LinearScaling):
        return speeds / scaling.factor, 1.0
    slow, wavelengths = speeds / scaling.factor, 2 * math.pi / speeds
    if isinstance(scaling, Llama3Scaling):
        turns = scaling.original_length / wavelengths
        share = (turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)
        between = (1 - share) * slow + share * speeds
        slowest = np.where(turns < scaling.low_frequency, slow, between)
        return np.where(turns > scaling.high_frequency, speeds, slowest), 1.0
    assert isinstance(scaling, YarnScaling)
    pair = lambda turns: (  # noqa: E731 (the number of the pair that turns so often)
        width * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(rotary.base))
    )
    low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
    low, high = (math.floor(low), math.ceil(high)) if scaling.truncate else (low, high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = np.clip((np.arange(width // 2) - low) / (high - low or 0.001), 0, 1)
    magnitude = scaling.attention_factor
    magnitude = 0.1 * math.log(scaling.factor) + 1 if magnitude is None else magnitude
    return ramp * slow + (1 - ramp) * speeds, magnitude


def unmasked(mask, T, S):
    """The entries `(T, S)` of a mask by its definition, one by one."""
    if isinstance(mask, masks.And):
        return unmasked(mask.first, T, S) & unmasked(mask.second, T, S)
    if isinstance(mask, masks.Or):
        return unmasked(mask.first, T, S) | unmasked(mask.second, T, S)
    rules = {
        type(None): lambda t, s: True,
        masks.Causal: lambda t, s: s <= t,
        masks.SlidingWindow: lambda t, s: t - mask.size < s <= t + mask.right,
        masks.Chunked: lambda t, s: t // mask.size == s // mask.size,
        masks.Prefix: lambda t, s: s < mask.lengths,
    }
    rule = rules[type(mask)]
    return np.array([[rule(t, s) for s in range(S)] for t in range(T)])


def position_bias(layer, params, T, S):
    """What is added to the scores, `(H, T, S)`, or None."""
    kind, H = layer.position_bias, layer.num_heads
    if kind is None:
        return None
    if kind == "alibi":  # H is a power of two
        return np.array(
            [[[-(2 ** (-8 * (h + 1) / H)) * abs(s - t) for s in range(S)] for t in range(T)] for h in range(H)]
        )
    table = params["relative_bias"]
    rows = [[table[bucket(s - t, kind)] for s in range(S)] for t in range(T)]
    return np.moveaxis(np.array(rows), -1, 0)


def bucket(distance, bias):
    """T5's bucket of one distance."""
    count, first = bias.num_buckets, 0
    if bias.bidirectional:
        count //= 2
        first = count if distance > 0 else 0
    else:
        distance = min(distance, 0)
    distance, exact = abs(distance), count // 2
    if distance < exact:
        return first + distance
    steps = math.log(distance / exact) / math.log(bias.max_distance / exact) * (count - exact)
    return first + min(exact + int(steps), count - 1)


def slopes(function, leaves, directions, step=1e-6):
    """How fast a function of float64 arrays grows when each leaf moves in its direction, by central differences."""
    leaves = [np.asarray(leaf, np.float64) for leaf in leaves]

    def moved(number, by):
        return function([leaf + by * directions[number] if i == number else leaf for i, leaf in enumerate(leaves)])

    return [(moved(number, step) - moved(number, -step)) / (2 * step) for number in range(len(leaves))]
