"""Rotary positions: queries and keys are rotated by their positions, so that scores depend on distances alone."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxattn.checks import wide_type


def rotate(
    heads: Float[Array, "*batch T H D"], positions: Int[Array, "*#batch T"], base: float = 10_000.0
) -> Float[Array, "*batch T H D"]:
    """Rotate each pair (i, i + D/2) of a head's numbers by the angle position · base^(-2i / D).

    The product of a query at position t and a key at s then depends on t - s alone, besides their contents.

    Args:
        heads: queries or keys `(..., T, H, D)`, D even.
        positions: integers `(..., T)`, or `(T,)` for all.
        base: the larger, the slower the slowest pair rotates.

    Returns:
        An array of the same shape and type.

    Raises:
        ValueError: D is odd, or there is not one position for each token.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn.rotary import rotate
        >>> rotated = rotate(jnp.ones((3, 1, 2)), jnp.arange(3))[:, 0]
        >>> rotated[0].tolist(), bool(jnp.allclose(jnp.linalg.norm(rotated, axis=-1), 2**0.5))  # no length changes
        ([1.0, 1.0], True)

    References:
        Su et al. 2021, "RoFormer"; in pairs (i, i + D/2) as in GPT-NeoX and Llama.
    """
    D = heads.shape[-1]
    if D % 2:
        raise ValueError(
            f"heads has shape {heads.shape}, but rotary positions rotate pairs, and the width {D} is odd: "
            "write features and num_heads such that features / num_heads is even"
        )
    positions = jnp.asarray(positions)
    if positions.ndim == 0 or positions.shape[-1] != heads.shape[-3]:
        raise ValueError(
            f"positions has shape {positions.shape}, but must hold one for each of {heads.shape[-3]} tokens, (..., T)"
        )
    wide = wide_type(heads.dtype)
    speeds = jnp.asarray(base, wide) ** (-jnp.arange(D // 2, dtype=wide) * (2 / D))
    angles = positions.astype(wide)[..., None, None] * speeds.reshape((1,) * positions.ndim + (1, -1))
    angles = angles.reshape((1,) * (heads.ndim - angles.ndim) + angles.shape)  # (..., T, 1, D / 2)
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(heads.astype(wide), 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1).astype(heads.dtype)
