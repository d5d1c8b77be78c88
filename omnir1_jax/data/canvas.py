"""The part of a batch that System 2 and SAM see: high-resolution frames on a fixed canvas, masks, boxes and areas.

Frames and masks are stretched to their canvases, as SAM 2 takes its input. Boxes and areas are taken from the masks at
the frames' own size.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Int32

from omnir1_jax.data import media
from omnir1_jax.data.clips import DecodedClip
from omnir1_jax.data.refs import BadSample

ABSENT = -1


@dataclass(frozen=True)
class DetailConfig:
    """Static shapes: frames T, objects N, canvas and mask_size (height, width)."""

    frames: int = 24
    objects: int = 3
    canvas: tuple[int, int] = (1024, 1024)
    mask_size: tuple[int, int] = (256, 256)


def boxes(masks: Bool[np.ndarray, "n t h w"]) -> Int32[np.ndarray, "n t 4"]:
    """Inclusive pixel extents (x_min, y_min, x_max, y_max) of each mask, all -1 where it is empty."""
    height, width = masks.shape[-2:]
    rows, columns = masks.any(-1), masks.any(-2)
    out = np.stack(
        [
            columns.argmax(-1),
            rows.argmax(-1),
            width - 1 - columns[..., ::-1].argmax(-1),
            height - 1 - rows[..., ::-1].argmax(-1),
        ],
        -1,
    ).astype(np.int32)
    return np.where(rows.any(-1)[..., None], out, np.int32(ABSENT))


def resize_mask(mask: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> Bool[np.ndarray, "h2 w2"]:
    """Pixels at least half covered; for an object too thin for any, every pixel it touches."""
    if mask.shape == size:
        return mask
    shrinks = size[0] <= mask.shape[0] and size[1] <= mask.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    # Coverage in 8 bits is exact enough to compare with a half, at a quarter of the memory of float32.
    cover = cv2.resize(mask.view(np.uint8) * np.uint8(255), size[::-1], interpolation=method)
    half = cover >= 128
    return half if half.any() else cover > 0


def element(clip: DecodedClip, config: DetailConfig) -> dict[str, np.ndarray]:
    """One clip's arrays; a collated batch has one more leading axis.

    frames uint8 [T,H,W,3], frame_valid bool [T], frame_index int32 [T] (position in the clip, -1 beyond its end),
    masks bool [N,T,h,w], boxes int32 [N,T,4], areas int32 [N,T] (pixels), object_valid bool [N], size int32 [2] (the
    frames' own height and width). Raises BadSample where a clip does not fit.
    """
    t, n = len(clip.frames), 0 if clip.masks is None else len(clip.masks)
    if t > config.frames or n > config.objects:
        raise BadSample(
            clip.ref.sample_id, f"{t} frames of {n} objects; a batch has room for {config.frames} of {config.objects}"
        )
    frames = np.zeros((config.frames, *config.canvas, 3), np.uint8)
    for k, frame in enumerate(clip.frames):
        frames[k] = media.resize(frame, config.canvas)
    index = np.full(config.frames, ABSENT, np.int32)
    index[:t] = clip.frame_indices
    return {
        "frames": frames,
        "frame_valid": np.arange(config.frames) < t,
        "frame_index": index,
        "size": np.array(clip.size, np.int32),
        **_targets(clip, config),
    }


def _targets(clip: DecodedClip, config: DetailConfig) -> dict[str, np.ndarray]:
    n_max, t_max = config.objects, config.frames
    masks = np.zeros((n_max, t_max, *config.mask_size), bool)
    box = np.full((n_max, t_max, 4), ABSENT, np.int32)
    areas = np.zeros((n_max, t_max), np.int32)
    n = 0
    if clip.masks is not None and len(clip.masks):
        n, t = clip.masks.shape[:2]
        areas[:n, :t] = np.count_nonzero(clip.masks, axis=(-2, -1))
        box[:n, :t] = boxes(clip.masks)
        for i, k in zip(*np.nonzero(areas)):
            masks[i, k] = resize_mask(clip.masks[i, k], config.mask_size)
    return {"masks": masks, "boxes": box, "areas": areas, "object_valid": np.arange(n_max) < n}
