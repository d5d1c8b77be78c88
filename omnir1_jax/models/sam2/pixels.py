"""Pixels in, masks out: resizing and normalisation in-graph, hole filling on the host."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet
HOLE_LOGIT = 0.1  # what upstream writes into a filled hole


def preprocess(frames: UInt8[Array, "t h w 3"], side: int) -> Float[Array, "t side side 3"]:
    """RGB frames to the model's input: bilinear with antialiasing to side x side, aspect not kept, ImageNet's scale.

    Values are rounded to whole levels after resizing, since upstream resizes 8-bit images.
    """
    t = frames.shape[0]
    x = frames.astype(jnp.float32)
    if frames.shape[1:3] != (side, side):
        x = jax.image.resize(x, (t, side, side, 3), "linear", antialias=True)
        x = jnp.clip(jnp.floor(x + 0.5), 0, 255)
    return (x / 255 - jnp.array(MEAN)) / jnp.array(STD)


def lift_masks(logits: Float[Array, "*b y x"], height: int, width: int) -> Float[Array, "*b height width"]:
    """Mask logits at the video's size: bilinear, no antialiasing; the mask is where they are > 0.

    For a few hundred large frames call it on slices: the result is height * width * 4 bytes per mask.
    """
    return jax.image.resize(logits, (*logits.shape[:-2], height, width), "linear", antialias=False)


def fill_holes(logits: Float[np.ndarray, "*b y x"], area: int) -> Float[np.ndarray, "*b y x"]:
    """Fills holes of at most `area` pixels (8-connected) in masks, as upstream's demo does with 8; on the host.

    Returns a copy whose filled pixels have logit 0.1; `area` 0 changes nothing.
    """
    out = np.array(logits)
    for mask in out.reshape(-1, *out.shape[-2:]) if area > 0 else ():
        count, labels, stats, _ = cv2.connectedComponentsWithStats((mask <= 0).astype(np.uint8), connectivity=8)
        small = np.zeros(count, bool)
        small[1:] = stats[1:, cv2.CC_STAT_AREA] <= area
        mask[small[labels]] = HOLE_LOGIT
    return out


def usable(coordinates: Float[Array, "*b n"]) -> Bool[Array, "*b"]:
    """Prompts whose coordinates are finite and at most a million pixels; the others count as absent."""
    return jnp.all(jnp.abs(coordinates) <= 1e6, axis=-1)
