"""From a decoded clip to the arrays that SAM 2 is trained on; a transform of the data pipeline."""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from omnir1_jax.data import canvas, media
from omnir1_jax.data.clips import DecodedClip
from omnir1_jax.data.refs import BadSample

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class MaskExampleConfig:
    """Static shapes: the model's input side (its masks are a quarter of it), maximum frames and objects.

    repeat: whether to fill the slots of missing objects with repeated objects. Each then gets its own prompts, and no
    slot of a batch is wasted.
    """

    side: int
    frames: int
    objects: int
    repeat: bool = True


def masks(clip: DecodedClip, config: MaskExampleConfig) -> Arrays:
    """The arrays of `masks.Batch` for one clip: frames stretched to a square, coverage, boxes in original pixels.

    If there are more objects than slots, some are drawn. Raises BadSample without any object, or with too many frames.
    """
    t, side, quarter = len(clip.frames), config.side, config.side // 4
    count = 0 if clip.masks is None else len(clip.masks)
    if not count or t > config.frames:
        raise BadSample(
            clip.ref.sample_id, f"{t} frames with {count} masks; a batch takes 1 to {config.frames}, at least one mask"
        )
    order = clip.rng.permutation(count) if count > config.objects else np.arange(count)
    if config.repeat:
        order = np.resize(order, max(count, config.objects))
    chosen = clip.masks[order[: config.objects]]
    n = len(chosen)
    frames = np.zeros((config.frames, side, side, 3), np.uint8)
    for k, frame in enumerate(clip.frames):
        frames[k] = media.resize(frame, (side, side))
    cover = np.zeros((config.objects, config.frames, quarter, quarter), np.uint8)
    boxes = np.full((config.objects, config.frames, 4), canvas.ABSENT, np.float32)
    boxes[:n, :t] = canvas.boxes(chosen)
    for i, k in np.ndindex(n, t):
        if boxes[i, k, 2] >= 0:
            cover[i, k] = coverage(chosen[i, k], quarter)
    return {
        "clip": frames,
        "frame_valid": np.arange(config.frames) < t,
        "masks": cover,
        "boxes": boxes,
        "object_valid": np.arange(config.objects) < n,
        "size": np.array(clip.size, np.int32),
    }


def coverage(mask: Bool[np.ndarray, "h w"], side: int) -> UInt8[np.ndarray, "side side"]:
    """How much of each pixel of a side x side grid the mask covers, 0 to 255.

    A binary mask of that size would lose the outline's position within a pixel.
    """
    shrinks = side <= min(mask.shape)
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(mask.astype(np.uint8) * np.uint8(255), (side, side), interpolation=method)
