"""Which frames, which expression, which objects: all draws seeded by (seed, epoch, index)."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

MERGED_PATCH = 28
VIDEO_MAX_PIXELS = 768 * MERGED_PATCH**2
VIDEO_MIN_PIXELS = 128 * MERGED_PATCH**2
SAMPLED_FPS = 2.0
TRAIN_LONG_CLIP = 16
TRAIN_MIN_FRAMES, TRAIN_MAX_FRAMES = 16, 24
MAX_OBJECTS = 3


def generator(seed: int, epoch: int, index: int, attempt: int = 0) -> np.random.Generator:
    """The random numbers of one item: the same for the same four numbers, whoever asks and whenever."""
    return np.random.default_rng((seed, epoch, index, attempt))


def video_frame_indices(
    total: int,
    fps: float,
    times: Float[np.ndarray, " total"] | None = None,
    *,
    maximum: int = 768,
    sampled_fps: float = SAMPLED_FPS,
) -> Int[np.ndarray, " n"]:
    """Which frames of a video file System 1 sees: linspace(0, total-1, n) in float32, rounded half to even.

    n is `sampled_fps` per second, from 4 to `maximum`, even, as in Qwen-VL's utilities. A video of one frame keeps it.

    Args:
      times: seconds of the frames, where they are unevenly spaced; then as in `evenly_in_time`.
    """
    high = 2 * math.floor(min(maximum, total) / 2)
    n = min(max(total / fps * sampled_fps, 4), high, total)
    n = max(2 * math.floor(n / 2), 1)
    return np.round(linspace32(total - 1, n)).astype(np.int64) if times is None else evenly_in_time(times, n)


def evenly_in_time(times: Float[np.ndarray, " total"], n: int) -> Int[np.ndarray, " n"]:
    """The frames nearest to `n` evenly spaced moments from the first frame to the last; one may serve several."""
    middles = (times[1:] + times[:-1]) / 2
    return np.searchsorted(middles, np.linspace(times[0], times[-1], n), "right")


def linspace32(end: int, n: int) -> np.ndarray:
    """linspace(0, end, n) rounded once to float32, from both ends, as torch's: where it meets .5 decides a frame."""
    if n == 1:
        return np.zeros(1, np.float32)
    step = np.float64(np.float32(end) / np.float32(n - 1))
    i = np.arange(n)
    return np.where(i < n // 2, step * i, end - step * i[::-1]).astype(np.float32)


def frame_pixel_budget(
    n: int,
    total_pixels: float | int,
    *,
    minimum: int = VIDEO_MIN_PIXELS,
    maximum: int = VIDEO_MAX_PIXELS,
) -> float | int:
    """Largest area of each of `n` frames in pixels: a share of the clip's budget (2 frames make one grid)."""
    return max(min(maximum, total_pixels / n * 2), int(1.05 * minimum))


def training_frames(
    length: int, rng: np.random.Generator, times: Float[np.ndarray, " length"] | None = None
) -> Int[np.ndarray, " n"]:
    """All frames of a clip of at most 16, else 16 to 24 by linspace truncated to whole numbers (repeats are possible
    where the clip has fewer frames than were drawn), or as in `evenly_in_time` if `times` are given."""
    if length <= TRAIN_LONG_CLIP:
        return np.arange(length)
    n = int(rng.integers(TRAIN_MIN_FRAMES, TRAIN_MAX_FRAMES + 1))
    return np.linspace(0, length - 1, n, dtype=np.int64) if times is None else evenly_in_time(times, n)


def training_objects(count: int, rng: np.random.Generator, limit: int = MAX_OBJECTS) -> Int[np.ndarray, " n"]:
    """Which objects of an expression, at most `limit`, in their own order."""
    if count <= limit:
        return np.arange(count)
    return np.sort(rng.choice(count, limit, replace=False))


class Draw(NamedTuple):
    """One item of the stream: the `index`-th of epoch `epoch`, of the clip with number `clip`."""

    epoch: int
    index: int
    clip: int
