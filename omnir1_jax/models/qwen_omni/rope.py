"""TMRoPE: rotary positions whose frequencies are shared out among time, height and width."""

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from omnir1_jax.models.qwen_omni.config import TextConfig

Rotary = tuple[Float[Array, "*b s f"], Float[Array, "*b s f"]]


def rotary(positions: Int[Array, "*b 3 s"], config: TextConfig, dtype: DTypeLike) -> Rotary:
    """Cosines and sines of each token for the `head_dim / 2` frequencies.

    The first section of the frequencies turns with time, the second with height, the third with width. Angles are
    taken in float32 and the cosines rounded to the hidden dtype before they are used, as the reference does.

    Args:
      positions: ids (time, height, width).
    """
    half = config.head_dim // 2
    # The power rounded to float32, then its reciprocal: one last bit matters at positions in the thousands.
    wavelengths = (config.rope_theta ** (np.arange(half) * 2 / config.head_dim)).astype(np.float32)
    frequencies = np.float32(1) / wavelengths
    axis = np.repeat(np.arange(3), config.mrope_section)
    angles = jnp.moveaxis(positions.astype(jnp.float32), -2, -1)[..., axis] * frequencies
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def rotate(x: Float[Array, "*b s h d"], angles: Rotary) -> Float[Array, "*b s h d"]:
    """Turns the pairs (i, i + d/2) of every head by the token's angles."""
    cos, sin = (a[..., None, :] for a in angles)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
