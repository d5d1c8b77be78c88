"""Marks on frames: masks filled or outlined, boxes, numbers. Frames are uint8 RGB, and never changed in place."""

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from omnir1_jax.tasks.description import Box

Colour = tuple[int, int, int]
# Distinguishable with every common kind of colour vision, on light and dark ground.
PREDICTED: Colour = (255, 130, 0)
TRUTH: Colour = (0, 200, 255)
KEYFRAME: Colour = (235, 60, 160)
DARK: Colour = (20, 20, 20)
FILL = 0.55


def fit(frame: UInt8[np.ndarray, "h w 3"], width: int, height: int) -> UInt8[np.ndarray, "height width 3"]:
    """The frame at a size: averaged when smaller, cubic when larger."""
    if frame.shape[:2] == (height, width):
        return frame
    shrinks = height * width < frame.shape[0] * frame.shape[1]
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def stretch(mask: Bool[np.ndarray, "y x"], width: int, height: int) -> Bool[np.ndarray, "height width"]:
    """The mask over a frame of a size; smooth edges where it grows."""
    if mask.shape == (height, width):
        return mask
    grows = height * width > mask.size
    cover = mask.astype(np.uint8) * np.uint8(255)
    return cv2.resize(cover, (width, height), interpolation=cv2.INTER_LINEAR if grows else cv2.INTER_AREA) >= 128


def filled(
    frame: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "y x"], colour: Colour = PREDICTED, share: float = FILL
) -> UInt8[np.ndarray, "h w 3"]:
    """The frame with `share` of the colour wherever the mask is."""
    resized = stretch(mask, frame.shape[1], frame.shape[0])
    out = frame.copy()
    out[resized] = np.round((1 - share) * frame[resized] + share * np.array(colour)).astype(np.uint8)
    return out


def outlined(
    frame: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "y x"], colour: Colour = TRUTH, thickness: int = 2
) -> UInt8[np.ndarray, "h w 3"]:
    """The frame with the mask's edge in the colour, on a dark line that shows on any ground."""
    resized = stretch(mask, frame.shape[1], frame.shape[0]).astype(np.uint8)
    contours, _ = cv2.findContours(resized, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    out = frame.copy()
    cv2.drawContours(out, contours, -1, DARK, thickness + 1, cv2.LINE_AA)
    cv2.drawContours(out, contours, -1, colour, max(thickness - 1, 1), cv2.LINE_AA)
    return out


def boxed(
    frame: UInt8[np.ndarray, "h w 3"], box: Box, size: tuple[int, int], colour: Colour, thickness: int = 2
) -> UInt8[np.ndarray, "h w 3"]:
    """The frame with a box in the colour between dark lines.

    Args:
      box: inclusive pixels of a frame of `size` (width, height). What lies outside the frame is drawn at its edge;
        a box that ends before it begins is drawn as a line.
    """
    height, width = frame.shape[:2]
    values = np.asarray(box, np.float64)
    if not np.isfinite(values).all():
        return frame
    scale = np.array([width / size[0], height / size[1]] * 2)
    corners = (values + [0, 0, 1, 1]) * scale - [0, 0, 1, 1]
    x0, y0, x1, y1 = (int(v) for v in np.clip(np.round(corners), 0, [width - 1, height - 1] * 2))
    out = frame.copy()
    for grow, shade in ((1, DARK), (-thickness, DARK), (0, colour)):
        lines = 1 if shade is DARK else thickness
        for step in range(lines):
            a = step - grow
            cv2.rectangle(out, (x0 + a, y0 + a), (max(x1 - a, x0 + a), max(y1 - a, y0 + a)), shade, 1)
    return out


def framed(tile: UInt8[np.ndarray, "h w 3"], colour: Colour, thickness: int = 4) -> UInt8[np.ndarray, "h w 3"]:
    """The tile with a border on its own outermost pixels."""
    out = tile.copy()
    for edge in (out[:thickness], out[-thickness:], out[:, :thickness], out[:, -thickness:]):
        edge[:] = colour
    return out


def even(frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The frame with its last row and column repeated where a side is odd, as video formats need it."""
    return np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
