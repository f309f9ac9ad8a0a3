"""Rotary positions of a configuration, in transformers' fields of today (`rope_parameters`) and of before."""

import math

from jaxattn.models.convert.transformers.fields import Fields
from jaxattn.rotary import LinearScaling, Llama3Scaling, Rotary, Scaling, YarnScaling

KINDS = ("default", "linear", "llama3", "yarn")


def rotary_of(
    fields: Fields, base: float = 10_000.0, layer_type: str | None = None, interleaved: bool = False
) -> Rotary:
    """Return how queries and keys are rotated.

    Args:
        fields: of the configuration.
        base: where the configuration has none.
        layer_type: of a model whose types of layers rotate differently.
        interleaved: as in `Rotary`.

    Raises:
        ValueError: the variant is not supported.
    """
    rope, base = rope_fields(fields, base, layer_type)
    kind = rope.take("rope_type", rope.take("type", "default"))
    if kind not in KINDS:
        raise ValueError(f"{fields.owner} has rope_type={kind!r}, but supported are {', '.join(map(repr, KINDS))}")
    base = float(rope.take("rope_theta", base))
    for owner in (fields, rope):
        owner.require("partial_rotary_factor", 1.0)
    rotary = Rotary(base, interleaved=interleaved, scaling=_scaling(kind, rope, fields))
    rope.finish()
    return rotary


def rope_fields(fields: Fields, base: float, layer_type: str | None) -> tuple[Fields, float]:
    """Return the fields about rotation, and the base for the case that they have none."""
    today, before = fields.take("rope_parameters"), fields.take("rope_scaling")
    base, local = fields.take("rope_theta", base), fields.take("rope_local_base_freq", 10_000.0)
    if layer_type is not None and today is not None and layer_type in today:
        today = today[layer_type]
    elif layer_type is not None and isinstance(today, dict) and any(isinstance(v, dict) for v in today.values()):
        today = None
    if layer_type == "sliding_attention":
        base, before = local, None
    return Fields(f"{fields.owner}, in its rotary fields,", today or before or {}), base


def _scaling(kind: str, rope: Fields, fields: Fields) -> Scaling | None:
    if kind == "default":
        return None
    longest = fields.take("max_position_embeddings")
    original = fields.take("original_max_position_embeddings", rope.take("original_max_position_embeddings", longest))
    factor = rope.take("factor")
    if kind == "yarn" and factor is None and longest and original:
        factor = longest / original
    needed = (
        {"factor": factor} if kind == "linear" else {"factor": factor, "original_max_position_embeddings": original}
    )
    if kind == "llama3":
        needed |= {name: rope.take(name) for name in ("low_freq_factor", "high_freq_factor")}
    for name, value in needed.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"{rope.owner} has {name}={value!r}, but rope_type={kind!r} needs a number")
    if kind == "linear":
        return LinearScaling(float(factor))
    if kind == "llama3":
        return Llama3Scaling(float(factor), needed["low_freq_factor"], needed["high_freq_factor"], original)
    rope.ignore("finetuned")
    return YarnScaling(
        float(factor),
        original,
        float(rope.take("beta_fast") or 32),
        float(rope.take("beta_slow") or 1),
        attention_factor=_attention_factor(rope, float(factor)),
        truncate=bool(rope.take("truncate", True)),
    )


def _attention_factor(rope: Fields, factor: float) -> float | None:
    """Return YaRN's factor on queries and keys; None is the one of the paper."""
    given, mscale, all_dim = (rope.take(name) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if given is None and mscale and all_dim:
        return magnitude(factor, mscale) / magnitude(factor, all_dim)
    return None if given is None else float(given)


def magnitude(factor: float, mscale: float) -> float:
    """Return 0.1 · mscale · ln(factor) + 1, YaRN's magnitude in DeepSeek's variant."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1
