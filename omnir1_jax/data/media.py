"""Decoded frames from image files or video files.

Frames of a video file are reached by decoding from its start: seeking by index is not exact in every container
(B-frames, edit lists, variable rates), and a wrong frame under a right mask would go unnoticed.
"""

import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from omnir1_jax.data import paths
from omnir1_jax.data.samples import BadSample, FrameSource, ImageBytes, ImageFiles, VideoFile

# Three channels, no EXIF rotation; in OpenCV's order where it is too old to give RGB itself.
_IS_RGB = hasattr(cv2, "IMREAD_COLOR_RGB")
_AS_STORED = (cv2.IMREAD_COLOR_RGB if _IS_RGB else cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
# Files that make ffmpeg open other files or addresses.
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD")


Size = tuple[int, int] | Callable[[int, int], tuple[int, int]]


class VideoInfo(NamedTuple):
    """A video file's frame count (as declared), rate in frames a second, and size in pixels."""

    frames: int
    fps: float
    height: int
    width: int


def decode_image(data: bytes, name: str, sample_id: str = "?") -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of an encoded image, as stored (an EXIF rotation is not applied: masks would not follow it).

    Raises BadSample for anything cut short: OpenCV alone would fill the missing part with gray.
    """
    if not data:
        raise BadSample(sample_id, f"{name} is empty")
    if (data.startswith(_JPEG) and not _jpeg_is_whole(data)) or (data.startswith(_PNG) and _PNG_END not in data[-32:]):
        raise BadSample(sample_id, f"{name} is cut short")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _AS_STORED)
    except cv2.error as error:
        raise BadSample(sample_id, f"{name} is not a readable image") from error
    if image is None:
        raise BadSample(sample_id, f"{name} is not a readable image")
    return image if _IS_RGB else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _jpeg_is_whole(data: bytes) -> bool:
    """Whether an end-of-image marker follows the first scan; one in an embedded thumbnail does not count."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            return data.rfind(b"\xff\xd9", at) >= 0
    return False


def resize(frame: UInt8[np.ndarray, "h w 3"], size: Size) -> UInt8[np.ndarray, "h2 w2 3"]:
    """To `size`, (height, width) or a function from the frame's own to that; area averaging where it shrinks,
    bilinear where it grows."""
    size = size(*frame.shape[:2]) if callable(size) else size
    if frame.shape[:2] == size:
        return frame
    shrinks = size[0] * size[1] < frame.shape[0] * frame.shape[1]
    return cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def local_media(path: str, sample_id: str) -> str:
    """`path`, checked to be a local file that is not a playlist naming others. Raises BadSample."""
    if paths.is_remote(path):
        raise BadSample(sample_id, f"{path}: video files have to be on a local disk; copy them there first")
    if not os.path.isfile(path):
        raise BadSample(sample_id, f"{path} is missing")
    with open(path, "rb") as file:
        head = file.read(16).lstrip()
    if not head or head.startswith(_PLAYLISTS):
        raise BadSample(sample_id, f"{path} is {'a playlist' if head else 'empty'}, not a video")
    return path


def _open_video(path: str, sample_id: str) -> cv2.VideoCapture:
    capture = cv2.VideoCapture(local_media(path, sample_id), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    if not capture.isOpened():
        raise BadSample(sample_id, f"{path} is not a readable video")
    return capture


@functools.lru_cache(maxsize=256)
def video_info(path: str, sample_id: str = "?") -> VideoInfo:
    """What the container declares. Raises BadSample where it declares nothing usable."""
    capture = _open_video(path, sample_id)
    try:
        values = [capture.get(p) for p in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS)]
        values += [capture.get(p) for p in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)]
    finally:
        capture.release()
    frames, fps, height, width = values
    if not (1 <= frames < 1e9 and 0 < fps < 1e4 and height >= 1 and width >= 1):
        raise BadSample(sample_id, f"{path}: a video of {frames:g} frames at {fps:g} frames a second")
    return VideoInfo(int(frames), fps, int(height), int(width))


def _span(source: VideoFile, sample_id: str) -> tuple[int, int]:
    """First frame and number of frames of the part of a video that a VideoFile means."""
    info = video_info(source.path, sample_id)
    first = math.floor((source.start or 0.0) * info.fps + 0.5)
    last = info.frames - 1 if source.end is None else min(math.floor(source.end * info.fps + 0.5), info.frames - 1)
    if not 0 <= first <= last:
        raise BadSample(
            sample_id, f"{source.path}: no frame from {source.start} s to {source.end} s; it has {info.frames} frames"
        )
    return first, last - first + 1


def within(max_pixels: int) -> Callable[[int, int], tuple[int, int]]:
    """A `size` for load_frames: frames of more than `max_pixels` shrink to that area, aspect kept."""

    def size(height: int, width: int) -> tuple[int, int]:
        scale = min(1.0, math.sqrt(max_pixels / (height * width)))
        return max(1, int(height * scale)), max(1, int(width * scale))

    return size


def frame_count(source: FrameSource, sample_id: str = "?") -> int:
    """Number of frames of the clip. Raises BadSample for a video that cannot be opened."""
    return _span(source, sample_id)[1] if isinstance(source, VideoFile) else len(source)


def frame_rate(source: FrameSource, sample_id: str = "?") -> float | None:
    """Frames a second of the clip, None where a folder of images does not say."""
    return video_info(source.path, sample_id).fps if isinstance(source, VideoFile) else source.fps


def load_frames(
    source: FrameSource,
    indices: Sequence[int] | Int[np.ndarray, " t"],
    *,
    size: Size | None = None,
    sample_id: str = "?",
) -> UInt8[np.ndarray, "t h w 3"]:
    """The clip's frames at `indices` (any order, repeats allowed) as RGB, resized to `size` if given: (height, width),
    or a function from the frames' own to that.

    Raises BadSample, naming the file: missing, cut short, unreadable, of another size than its clip's other frames.
    """
    wanted = sorted(set(int(i) for i in indices))
    if not wanted:
        raise BadSample(sample_id, "no frame was asked for")
    total = frame_count(source, sample_id)
    if wanted[0] < 0 or wanted[-1] >= total:
        raise BadSample(sample_id, f"frame {wanted[-1] if wanted[-1] >= total else wanted[0]} of {total}")
    match source:
        case ImageFiles():
            named = ((i, source.paths[i], _read(source.paths[i], sample_id)) for i in wanted)
        case ImageBytes():
            named = ((i, f"frame {source.names[i]}", source.blobs[i]) for i in wanted)
        case VideoFile():
            return _video_frames(source, indices, wanted, size, sample_id)
    frames: dict[int, np.ndarray] = {}
    first_size: tuple[int, ...] | None = None
    for i, name, data in named:
        frame = decode_image(data, name, sample_id)
        first_size = first_size or frame.shape
        if frame.shape != first_size:
            raise BadSample(
                sample_id,
                f"{name} is {frame.shape[0]}x{frame.shape[1]} in a clip of {first_size[0]}x{first_size[1]} frames",
            )
        frames[i] = resize(frame, size) if size else frame
    return np.stack([frames[int(i)] for i in indices])


def _read(path: str, sample_id: str) -> bytes:
    try:
        return paths.read_bytes(path)
    except FileNotFoundError as error:
        raise BadSample(sample_id, f"{path} is missing") from error
    except OSError as error:
        raise BadSample(sample_id, f"{path} cannot be read ({error.strerror or error})") from error


def _video_frames(
    source: VideoFile,
    indices: Sequence[int] | Int[np.ndarray, " t"],
    wanted: list[int],
    size: Size | None,
    sample_id: str,
) -> np.ndarray:
    first, _ = _span(source, sample_id)
    capture = _open_video(source.path, sample_id)
    frames: dict[int, np.ndarray] = {}
    try:
        position = -1
        for i in wanted:
            while position < first + i:
                if not capture.grab():
                    raise BadSample(sample_id, f"{source.path} ends at frame {position + 1}, before frame {first + i}")
                position += 1
            good, frame = capture.retrieve()
            if not good:
                raise BadSample(sample_id, f"{source.path}: frame {first + i} cannot be decoded")
            frame = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            frames[i] = resize(frame, size) if size else frame
    except cv2.error as error:
        raise BadSample(sample_id, f"{source.path} cannot be decoded") from error
    finally:
        capture.release()
    return np.stack([frames[int(i)] for i in indices])
