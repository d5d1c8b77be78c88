"""Clips as the bytes and records that datasets are made of."""

import functools
import io
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
from jaxtyping import Bool, Int16, UInt8

from omnir1_jax.data import rle
from omnir1_jax.data.refcocog import CANVAS
from omnir1_jax.data.synthetic.sound import RATE

JPEG_QUALITY = 95


def jpeg(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """An RGB image as JPEG, colour at full resolution."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", image[..., ::-1], options)[1].tobytes()


def png(gray: UInt8[np.ndarray, "h w"]) -> bytes:
    return cv2.imencode(".png", gray)[1].tobytes()


def track(masks: Bool[np.ndarray, "t h w"]) -> list[dict[str, Any] | None]:
    """Run lengths of one object, null where it is not seen."""
    return [rle.encode(mask) if mask.any() else None for mask in masks]


def canvas(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "840 840 3"]:
    """The image as refCOCOg_2k_840 has it: stretched to 840x840."""
    return cv2.resize(image, CANVAS[::-1], interpolation=cv2.INTER_LINEAR)


def box_and_points(mask: Bool[np.ndarray, "h w"]) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Box (x0, y0, x1, y1) around a mask and two points deep inside it, in pixels of the 840x840 canvas."""
    large = cv2.resize(mask.astype(np.uint8), CANVAS[::-1], interpolation=cv2.INTER_NEAREST)
    rows, columns = np.flatnonzero(large.any(1)), np.flatnonzero(large.any(0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    points = []
    inner = np.pad(large, 1)
    for _ in range(2):
        depth = cv2.distanceTransform(inner, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        points.append((int(x), int(y)))
        # The second point looks for room away from the first, within the mask as long as any is left.
        cv2.circle(inner, (int(x) + 1, int(y) + 1), max(1, int(depth.max() // 2)), 0, -1)
    return tuple(int(v) for v in box), tuple(points)


@functools.cache
def video_codec() -> str:
    """H.264 where PyAV's wheel can write it, else MPEG-4 part 2."""
    try:
        av.Codec("libx264", "w")
    except av.codec.codec.UnknownCodecError:
        return "mpeg4"
    return "libx264"


def mp4(frames: UInt8[np.ndarray, "t h w 3"], fps: float, sound: Int16[np.ndarray, "samples"] | None = None) -> bytes:
    """A video file of RGB frames (even height and width), with an AAC track if there is sound."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        codec = video_codec()
        options = {"crf": "14", "preset": "veryfast", "threads": "1"} if codec == "libx264" else {"qscale": "2"}
        video = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        audio = None if sound is None else container.add_stream("aac", rate=RATE, layout="mono")
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None:
            for start in range(0, len(sound), 1024):
                piece = np.ascontiguousarray(sound[None, start : start + 1024])
                block = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
                block.sample_rate, block.pts, block.time_base = RATE, start, Fraction(1, RATE)
                container.mux(audio.encode(block))
            container.mux(audio.encode(None))
    return buffer.getvalue()
