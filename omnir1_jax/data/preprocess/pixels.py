"""Images and frames to the cells that the vision encoder reads: sizes, colours, bicubic resizing, patching."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from omnir1_jax.errors import InputError

MAX_ASPECT = 200


def smart_resize(
    height: int, width: int, *, min_pixels: float | int, max_pixels: float | int, factor: int = 28, name: str = "image"
) -> tuple[int, int]:
    """Height and width in multiples of `factor` with about the same aspect ratio and an area between the limits.

    Equal to the function of the same name in transformers' Qwen2-VL processors (rounding half to even). The authors'
    own utilities round a side of under half a factor up to one factor before they look at the area; the processor,
    followed here, enlarges the image instead.

    Raises:
      InputError: a side of zero, or an aspect ratio over 200.
    """
    if min(height, width) < 1:
        raise InputError(f"{name} is {height} x {width} pixels; both sides must be at least 1")
    if max(height, width) / min(height, width) > MAX_ASPECT:
        raise InputError(f"{name} is {height} x {width} pixels; the aspect ratio may be at most {MAX_ASPECT}")
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor**2 > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif rows * columns * factor**2 < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / factor)
        columns = math.ceil(width * grow / factor)
    return rows * factor, columns * factor


def rgb(image: Any, name: str = "image") -> UInt8[np.ndarray, "h w 3"]:
    """As RGB: gray is repeated, transparency is blended onto white. Arrays are [h, w], [h, w, 1], 3 or 4, uint8.

    Raises:
      InputError: another type or shape, or no pixels.
    """
    if isinstance(image, Image.Image):
        has_alpha = "A" in image.getbands() or image.info.get("transparency") is not None
        image = image.convert("RGBA" if has_alpha else "RGB")
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise InputError(f"{name} must hold uint8 values from 0 to 255, got {pixels.dtype}")
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise InputError(f"{name} must be [height, width] or [height, width, 1, 3 or 4 channels], got {pixels.shape}")
    if not pixels.size:
        raise InputError(f"{name} is {pixels.shape[0]} x {pixels.shape[1]} pixels; both sides must be at least 1")
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 4:
        alpha = pixels[:, :, 3:] / 255
        return np.round(alpha * pixels[:, :, :3] + (1 - alpha) * 255).astype(np.uint8)
    return pixels


def resize(frame: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Bicubic with antialiasing, which OpenCV's lacks: Pillow's, rows before columns whatever the shape.

    Pillow on its own picks the order by the shape and moves tall images by up to ten levels at edges. In this order
    the result is that of transformers' processors (torchvision on uint8) but for one level, rarely two, on about
    0.4 % of the values.
    """
    image = Image.fromarray(frame)
    for size in ((width, frame.shape[0]), (width, height)):
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image)


def cells(frames: Sequence[UInt8[np.ndarray, "h w 3"]], cell: int = 28) -> UInt8[np.ndarray, "n 2 cell cell 3"]:
    """Splits frames of one size into cells of two frames, pair by pair, row by row; an odd last frame is repeated."""
    clip = np.stack([*frames, frames[-1]] if len(frames) % 2 else list(frames))
    t, h, w, _ = clip.shape
    split = clip.reshape(t // 2, 2, h // cell, cell, w // cell, cell, 3)
    return split.transpose(0, 2, 4, 1, 3, 5, 6).reshape(-1, 2, cell, cell, 3)
