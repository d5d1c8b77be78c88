"""Boxes as inclusive pixel extents (x_min, y_min, x_max, y_max), and their assignment to objects."""

import itertools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

MISSING = -1.0
TIE = 1e-6  # smaller differences between sums of IoU are ties


def area(box: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """Pixels of each box, both edges included; 0 where an extent is not positive."""
    width, height = box[..., 2] - box[..., 0] + 1, box[..., 3] - box[..., 1] + 1
    return jnp.where((width > 0) & (height > 0), width * height, 0.0)


def iou(a: Float[Array, "*#b 4"], b: Float[Array, "*#b 4"]) -> Float[Array, "..."]:
    """Intersection over union with the + 1 convention; 0 where either box has no pixel."""
    corners = jnp.concatenate([jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])], axis=-1)
    inter = area(corners)
    union = area(a) + area(b) - inter
    real = (area(a) > 0) & (area(b) > 0) & (union > 0)
    return jnp.where(real, inter / jnp.where(real, union, 1.0), 0.0)


def is_missing(box: Float[Array, "*b 4"]) -> Bool[Array, "*b"]:
    """Mask of boxes that were not parsed, or of objects that are not in the frame."""
    return jnp.all(box == MISSING, axis=-1)


def assign(score: Float[Array, "n n"]) -> Int[Array, "n"]:
    """The column of each row in the best one-to-one assignment; of several best, the lexicographically first.

    All n! assignments are tried: n is the number of objects of a clip, at most 3 in training, and the order among
    ties is part of the reward's definition. Beyond n = 6 use a Hungarian solver.
    """
    n = score.shape[0]
    orders = np.array(list(itertools.permutations(range(n))), np.int32)
    totals = jnp.sum(score[np.arange(n), orders], axis=1)
    return jnp.asarray(orders)[jnp.argmax(totals >= jnp.max(totals) - TIE)]
