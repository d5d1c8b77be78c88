"""Selects the frames that System 2 looks at from a plan."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from omnir1_jax.text.strings import Buffer


class Keyframes(NamedTuple):
    """The chosen frames of one completion, in time order.

    Attributes:
      frame: index in the clip; 0 where not valid.
      piece: the piece of the plan whose description goes with the frame; 0 where not valid.
      valid: slots in use, always the first ones.
    """

    frame: Int[Array, "k"]
    piece: Int[Array, "k"]
    valid: Bool[Array, "k"]


def members(
    valid: Bool[Array, "p"], first: Int[Array, "p"], last: Int[Array, "p"], max_frames: int
) -> Bool[Array, "p t"]:
    """Which frames each valid piece of a plan holds."""
    frame = jnp.arange(max_frames)
    return valid[:, None] & (first[:, None] <= frame) & (frame <= last[:, None])


def select(member: Bool[Array, "p t"], count: int) -> Keyframes:
    """The first `count` distinct frames in time order, each with the first piece that holds it."""
    covered = jnp.any(member, axis=0)
    rank = jnp.where(covered, jnp.cumsum(covered) - 1, -1)
    chosen = rank == jnp.arange(count)[:, None]
    frame = jnp.argmax(chosen, axis=1)
    valid = jnp.any(chosen, axis=1)
    piece = jnp.argmax(member[:, frame], axis=0)
    return Keyframes(frame, jnp.where(valid, piece, 0), valid)


def descriptions(of_pieces: Buffer, chosen: Keyframes) -> Buffer:
    """The description of each keyframe, [n k ...], out of those of the plans' pieces, [n p ...]."""
    return jax.tree.map(lambda x: jax.vmap(lambda row, piece: row[piece])(x, chosen.piece), of_pieces)
