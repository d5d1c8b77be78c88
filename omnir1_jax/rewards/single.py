"""Rewards of one image: RefAVS (a box from a description) and refCOCOg (a box and two points)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from omnir1_jax.rewards import boxes
from omnir1_jax.text.readers import BoxAndPoints
from omnir1_jax.text.rules import Failure


def refavs_accuracy(
    predicted: Float[Array, "*b 4"], truth: Float[Array, "*b 4"], scale: Float[Array, "*b 2"]
) -> Float[Array, "*b"]:
    """IoU of System 2's first box with the true one, in resized pixels; 0 where either is missing.

    Args:
      truth: true box in original pixels, -1 where the object is not in the frame.
      scale: resized over original width and height.
    """
    present = ~boxes.is_missing(predicted) & ~boxes.is_missing(truth)
    scaled = truth * jnp.concatenate([scale, scale], axis=-1)
    return jnp.where(present, boxes.iou(predicted, scaled), 0.0)


def refcocog_terms(
    answer: BoxAndPoints,
    box: Float[Array, "n 4"],
    points: Float[Array, "n 2 2"],
    scale: Float[Array, "n 2"],
) -> dict[str, Float[Array, "n"]]:
    """Seg-Zero's terms: overlap, points, corners, strictness; each 0 where its part was not parsed.

    Args:
      box, points: ground truth in original pixels.
      scale: resized over original width and height. The scaled truth is truncated to whole pixels.
    """
    box = jnp.trunc(box * jnp.concatenate([scale, scale], axis=-1))
    points = jnp.trunc(points * scale[:, None])
    has_box = answer.box_failure == Failure.OK
    has_points = jnp.all(answer.point_failure == Failure.OK, axis=1) & has_box

    low, high = jnp.maximum(answer.box[:, :2], box[:, :2]), jnp.minimum(answer.box[:, 2:], box[:, 2:])
    iou = jnp.where(jnp.all(low < high, axis=1), boxes.iou(answer.box, box), 0.0)
    overlap = 2.0 * jnp.maximum(iou - 0.5, 0.0) + 0.4 * (iou > 0.5)

    guess = answer.points.astype(jnp.float32)
    inside = (answer.box[:, None, :2] <= guess) & (guess <= answer.box[:, None, 2:])
    straight = jnp.linalg.norm(guess - points, axis=-1).mean(axis=1)
    crossed = jnp.linalg.norm(guess - points[:, ::-1], axis=-1).mean(axis=1)
    closeness = jnp.clip((150.0 - jnp.minimum(straight, crossed)) * 0.02, 0.0, 1.0)

    corners = jnp.clip((30.0 - jnp.mean(jnp.abs(answer.box - box), axis=1)) * 0.05, 0.0, 1.0)
    return {
        "overlap": jnp.where(has_box, overlap, 0.0),
        "points": jnp.where(has_points & jnp.all(inside, axis=(1, 2)), closeness, 0.0),
        "corners": jnp.where(has_box, corners, 0.0),
        "strict": answer.strict.astype(jnp.float32),
    }
