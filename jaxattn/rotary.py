"""Rotary positions: queries and keys are rotated by their positions, so that scores depend on distances alone."""

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxattn.checks import as_array, as_floating, broadcasts, check_rank, wide_type


@runtime_checkable
class Scaling(Protocol):
    """How the speeds of the pairs change, so that a model can read sequences longer than those of its training."""

    @property
    def magnitude(self) -> float:
        """The factor on rotated queries and keys."""
        ...

    def speeds(self, speeds: np.ndarray, base: float) -> np.ndarray:
        """Return the scaled speeds `(pairs,)`, in radians a position, fastest first."""
        ...


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Position interpolation: all speeds are divided by `factor` (Chen et al. 2023, "Extending Context Window")."""

    factor: float

    magnitude = 1.0

    def __post_init__(self) -> None:
        _check_positive(self)

    def speeds(self, speeds: np.ndarray, base: float) -> np.ndarray:
        return speeds / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Slow pairs are divided by `factor`, fast ones stay, those between are interpolated (Llama 3.1, Meta 2024).

    A pair is fast if it turns more than `high_frequency` times in `original_length` tokens, and slow if it turns less
    than `low_frequency` times.
    """

    factor: float
    low_frequency: float
    high_frequency: float
    original_length: int

    magnitude = 1.0

    def __post_init__(self) -> None:
        _check_positive(self)
        if not self.low_frequency < self.high_frequency:
            raise ValueError(
                f"low_frequency={self.low_frequency} must be below high_frequency={self.high_frequency}: write "
                "Llama3Scaling(8.0, 1.0, 4.0, 8192)"
            )

    def speeds(self, speeds: np.ndarray, base: float) -> np.ndarray:
        turns = self.original_length * speeds / (2 * math.pi)
        share = np.clip((turns - self.low_frequency) / (self.high_frequency - self.low_frequency), 0, 1)
        return (1 - share) * speeds / self.factor + share * speeds


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN: as `Llama3Scaling`, but the pairs between are interpolated by their number, and all are magnified.

    A pair is fast if it turns more than `beta_fast` times in `original_length` tokens, and slow if less than
    `beta_slow` times. `attention_factor` multiplies rotated queries and keys; None is 0.1 · ln(factor) + 1. `truncate`
    rounds the numbers of the first and last pair between.

    References:
        Peng et al. 2023, "YaRN: Efficient Context Window Extension of Large Language Models".
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        _check_positive(self)
        if not self.beta_slow < self.beta_fast:
            raise ValueError(
                f"beta_slow={self.beta_slow} must be below beta_fast={self.beta_fast}: write "
                "YarnScaling(4.0, 4096, beta_fast=32, beta_slow=1)"
            )

    @property
    def magnitude(self) -> float:
        """The factor on rotated queries and keys."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 1.0 if self.factor <= 1 else 0.1 * math.log(self.factor) + 1

    def speeds(self, speeds: np.ndarray, base: float) -> np.ndarray:
        width = 2 * len(speeds)

        def pair(turns: float) -> float:
            """The number of the pair that turns so many times in the original length."""
            return width * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

        first, last = pair(self.beta_fast), pair(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        # Where even the first pair turns less than `beta_slow` times, it is negative, and nothing is scaled, as in the
        # code of the paper's authors and in transformers.
        span = last - first or 0.001
        share = 1 - np.clip((np.arange(len(speeds)) - first) / span, 0, 1)
        return (1 - share) * speeds / self.factor + share * speeds


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Which numbers of a head are rotated, and how fast.

    Args:
        base: pair i of P rotates by position · base^(-i / P): the larger, the slower the slowest pair.
        width: how many of a head's first numbers are rotated; None is all of them.
        interleaved: whether the pairs are neighbours (2i, 2i + 1), as in RoFormer and GPT-J, or (i, i + width/2), as in
            GPT-NeoX and Llama.
        scaling: for sequences longer than those of the training: `LinearScaling`, `Llama3Scaling`, `YarnScaling`, or
            None.

    References:
        Su et al. 2021, "RoFormer"; Black et al. 2022, "GPT-NeoX-20B" (a part of the width).
    """

    base: float = 10_000.0
    width: int | None = None
    interleaved: bool = False
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        if not self.base > 1:
            raise ValueError(f"base={self.base} must be above 1: write Rotary(base=10_000.0)")
        if self.width is not None and (self.width < 2 or self.width % 2):
            raise ValueError(f"width={self.width} must be even and at least 2, for pairs: write Rotary(width=64)")


def rotate(
    heads: Float[Array, "*batch T H D"], positions: Int[Array, "*#batch T"], rotary: float | Rotary = 10_000.0
) -> Float[Array, "*batch T H D"]:
    """Rotate each pair of a head's numbers by the angle position · base^(-2i / D).

    The product of a query at position t and a key at s then depends on t - s alone, besides their contents.

    Args:
        heads: queries or keys `(..., T, H, D)`, D even.
        positions: integers `(..., T)`, or `(T,)` for all.
        rotary: a `Rotary`, or its base.

    Returns:
        An array of the same shape and type.

    Raises:
        TypeError: `heads` are not floating point.
        ValueError: the width is odd or larger than D, or there is not one position for each token.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn.rotary import rotate
        >>> rotated = rotate(jnp.ones((3, 1, 2)), jnp.arange(3))[:, 0]
        >>> rotated[0].tolist(), bool(jnp.allclose(jnp.linalg.norm(rotated, axis=-1), 2**0.5))  # no length changes
        ([1.0, 1.0], True)
    """
    rotary = rotary if isinstance(rotary, Rotary) else Rotary(rotary)
    heads, positions = as_floating("heads", heads), as_array("positions", positions)
    check_rank("heads", heads, 3, "T, H, D")
    width = _checked_width(heads, rotary)
    tokens = heads.shape[:-2]
    if positions.ndim == 0 or positions.shape[-1] != tokens[-1] or not broadcasts(positions.shape, tokens):
        raise ValueError(
            f"positions has shape {positions.shape}, but must hold one for each of the tokens {tokens}, (..., T), or "
            "for those of one example, (T,)"
        )
    if width == 0:
        return heads
    wide = wide_type(heads.dtype)
    angles = positions.astype(wide)[..., None, None] * _speeds(rotary, width, wide).reshape(
        (1,) * positions.ndim + (1, -1)
    )
    angles = angles.reshape((1,) * (heads.ndim - angles.ndim) + angles.shape)  # (..., T, 1, width / 2)
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    if rotary.scaling is not None:
        cosine, sine = cosine * rotary.scaling.magnitude, sine * rotary.scaling.magnitude
    rotated, rest = heads[..., :width].astype(wide), heads[..., width:]
    if rotary.interleaved:
        first, second = rotated[..., ::2], rotated[..., 1::2]
    else:
        first, second = jnp.split(rotated, 2, axis=-1)
    pairs = first * cosine - second * sine, second * cosine + first * sine
    joined = jnp.stack(pairs, -1).reshape(rotated.shape) if rotary.interleaved else jnp.concatenate(pairs, -1)
    joined = joined.astype(heads.dtype)
    return jnp.concatenate([joined, rest], -1) if rest.shape[-1] else joined


def _speeds(rotary: Rotary, width: int, wide: Any) -> Array:
    """The speed of each pair, in radians a position."""
    if rotary.scaling is None:
        return jnp.asarray(rotary.base, wide) ** (-jnp.arange(width // 2, dtype=wide) * (2 / width))
    speeds = rotary.base ** (-np.arange(width // 2) * (2 / width))
    return jnp.asarray(rotary.scaling.speeds(speeds, rotary.base), wide)


def _checked_width(heads: Array, rotary: Rotary) -> int:
    D = heads.shape[-1]
    width = D if rotary.width is None else rotary.width
    if width > D:
        raise ValueError(f"heads has shape {heads.shape}, but Rotary(width={width}) rotates more: write width={D}")
    if width % 2:
        raise ValueError(
            f"heads has shape {heads.shape}, but rotary positions rotate pairs, and the width {D} is odd: "
            "write features and num_heads such that features / num_heads is even"
        )
    return width


def _check_positive(scaling: object) -> None:
    for name in ("factor", "original_length", "low_frequency", "high_frequency", "beta_fast", "beta_slow"):
        number = getattr(scaling, name, 1)
        if not number > 0:
            raise ValueError(f"{name}={number} must be above 0: write {type(scaling).__name__}({name}=4.0, ...)")
