"""The part of a batch that System 2 and SAM see: sharp frames on a fixed canvas, masks, boxes and areas.

Frames and masks share one way onto their canvases: "stretch" fills it (as SAM 2 takes its input), "letterbox" keeps
the aspect, anchored top left, the rest zero. Boxes and areas are taken from the masks at the frames' own size.
"""

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Int32

from omnir1_jax.data import media
from omnir1_jax.data.audio import SAMPLE_RATE
from omnir1_jax.data.clips import DecodedClip
from omnir1_jax.data.samples import BadSample

ABSENT = -1


@dataclass(frozen=True)
class DetailConfig:
    """Static shapes: frames T, objects N, canvas and mask_size (height, width), seconds of sound (0: none)."""

    frames: int = 24
    objects: int = 3
    canvas: tuple[int, int] = (1024, 1024)
    mask_size: tuple[int, int] = (256, 256)
    fit: Literal["stretch", "letterbox"] = "stretch"
    audio_seconds: float = 0.0


def content_size(size: tuple[int, int], canvas: tuple[int, int], fit: str) -> tuple[int, int]:
    """(height, width) that frames of `size` take up on the canvas."""
    if fit == "stretch":
        return canvas
    scale = min(canvas[0] / size[0], canvas[1] / size[1])
    return max(1, math.floor(size[0] * scale + 1e-6)), max(1, math.floor(size[1] * scale + 1e-6))


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
    frames' own), content int32 [2] (their extent on the canvas); with audio_seconds also audio float32 [samples] and
    audio_samples int32 [] (how many of them are sound). Raises BadSample where a clip does not fit.
    """
    t, n = len(clip.frames), 0 if clip.masks is None else len(clip.masks)
    if t > config.frames or n > config.objects:
        raise BadSample(
            clip.ref.sample_id, f"{t} frames of {n} objects; a batch has room for {config.frames} of {config.objects}"
        )
    content = content_size(clip.size, config.canvas, config.fit)
    frames = np.zeros((config.frames, *config.canvas, 3), np.uint8)
    for k, frame in enumerate(clip.frames):
        frames[k, : content[0], : content[1]] = media.resize(frame, content)
    index = np.full(config.frames, ABSENT, np.int32)
    index[:t] = clip.frame_indices
    out = {
        "frames": frames,
        "frame_valid": np.arange(config.frames) < t,
        "frame_index": index,
        "size": np.array(clip.size, np.int32),
        "content": np.array(content, np.int32),
        **_targets(clip, config),
    }
    if config.audio_seconds > 0:
        out |= _sound(clip, config.audio_seconds)
    return out


def _targets(clip: DecodedClip, config: DetailConfig) -> dict[str, np.ndarray]:
    n_max, t_max = config.objects, config.frames
    masks = np.zeros((n_max, t_max, *config.mask_size), bool)
    box = np.full((n_max, t_max, 4), ABSENT, np.int32)
    areas = np.zeros((n_max, t_max), np.int32)
    n = 0
    if clip.masks is not None and len(clip.masks):
        n, t = clip.masks.shape[:2]
        content = content_size(clip.size, config.mask_size, config.fit)
        areas[:n, :t] = np.count_nonzero(clip.masks, axis=(-2, -1))
        box[:n, :t] = boxes(clip.masks)
        for i, k in zip(*np.nonzero(areas)):
            masks[i, k, : content[0], : content[1]] = resize_mask(clip.masks[i, k], content)
    return {"masks": masks, "boxes": box, "areas": areas, "object_valid": np.arange(n_max) < n}


def _sound(clip: DecodedClip, seconds: float) -> dict[str, np.ndarray]:
    samples = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    n = 0 if clip.audio is None else min(len(clip.audio), len(samples))
    if n:
        samples[:n] = clip.audio[:n]
    return {"audio": samples, "audio_samples": np.array(n, np.int32)}


def answer_element(clip: DecodedClip) -> dict[str, np.ndarray]:
    """What a question's reward needs beside its text: answer_index int32 [] (-1 where it has no options)."""
    index = clip.ref.extra.get("answer_index")
    return {"answer_index": np.array(ABSENT if index is None else index, np.int32)}


def refcocog_element(clip: DecodedClip, objects: int = 3) -> dict[str, np.ndarray]:
    """gt_boxes int32 [N,4] and gt_points int32 [2N,2], pixels of the 840 square as given, -1 beyond their number."""
    box = np.full((objects, 4), ABSENT, np.int32)
    points = np.full((2 * objects, 2), ABSENT, np.int32)
    for name, array, values in (("boxes", box, clip.ref.extra["boxes"]), ("points", points, clip.ref.extra["points"])):
        if len(values) > len(array):
            raise BadSample(clip.ref.sample_id, f"{len(values)} {name}; a batch has room for {len(array)}")
        if len(values):
            array[: len(values)] = values
    return {"gt_boxes": box, "gt_points": points}


def merge(*parts):
    """A transform that joins the arrays of several, e.g. this module's and System 1's prompt. Names must differ."""
    return _Merged(parts)


@dataclass(frozen=True)
class _Merged:
    parts: tuple

    def __call__(self, clip: DecodedClip) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        for part in self.parts:
            arrays = part(clip)
            if both := out.keys() & arrays.keys():
                raise ValueError(f"two transforms give the array {min(both)!r}")
            out |= arrays
        return out
