"""Decoded frames from image files or video files, and when they appear."""

import math
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from omnir1_jax.data import paths, video_decoder, video_index
from omnir1_jax.data.refs import BadSample, FrameSource, ImageBytes, ImageFiles, VideoFile
from omnir1_jax.data.video_index import VideoError, VideoIndex

# Three channels; in OpenCV's order where it is too old to give RGB itself.
_IS_RGB = hasattr(cv2, "IMREAD_COLOR_RGB")
_UPRIGHT = cv2.IMREAD_COLOR_RGB if _IS_RGB else cv2.IMREAD_COLOR
_AS_STORED = _UPRIGHT | cv2.IMREAD_IGNORE_ORIENTATION
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"

Size = tuple[int, int] | Callable[[int, int], tuple[int, int]]


def decode_image(data: bytes, name: str, sample_id: str = "?", upright: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of an encoded image: as stored, or upright, after its EXIF rotation (masks would not follow it).

    Raises BadSample for anything truncated: OpenCV alone would fill the missing part with gray.
    """
    if not data:
        raise BadSample(sample_id, f"{name} is empty")
    if (data.startswith(_JPEG) and not _jpeg_is_whole(data)) or (data.startswith(_PNG) and _PNG_END not in data[-32:]):
        raise BadSample(sample_id, f"{name} is truncated")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _UPRIGHT if upright else _AS_STORED)
    except cv2.error as error:
        raise BadSample(sample_id, f"{name} is not a readable image") from error
    if image is None:
        raise BadSample(sample_id, f"{name} is not a readable image")
    return image if _IS_RGB else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _jpeg_is_whole(data: bytes) -> bool:
    """Whether an end-of-image marker follows the first scan; one in an embedded thumbnail does not count."""
    offset = 2
    while offset + 4 <= len(data) and data[offset] == 0xFF:
        marker = data[offset + 1]
        if marker == 0xFF:  # padding
            offset += 1
            continue
        offset += 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
        if marker == 0xDA:
            return data.rfind(b"\xff\xd9", offset) >= 0
    return False


def resize(frame: UInt8[np.ndarray, "h w 3"], size: Size) -> UInt8[np.ndarray, "h2 w2 3"]:
    """To `size`, (height, width) or a function from the frame's own size to it; area averaging where it shrinks,
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
    try:
        video_index.check_file(path)
    except VideoError as error:
        raise BadSample(sample_id, f"{path} {error}") from error
    return path


def video_info(path: str, sample_id: str = "?") -> VideoIndex:
    """What a video file shows. Raises BadSample for one that cannot be read."""
    try:
        return video_index.read(local_media(path, sample_id))
    except VideoError as error:
        raise BadSample(sample_id, f"{path} {error}") from error


def _span(source: VideoFile, sample_id: str) -> tuple[VideoIndex, int, int]:
    """The file, and first frame and number of frames of the part that a VideoFile means: from the frame nearest to
    its start to that nearest to its end."""
    index = video_info(source.path, sample_id)
    first, last = 0, index.count - 1
    if source.start is not None:
        first = max(_nearest(index, source.start), 0)
    if source.end is not None:
        last = min(_nearest(index, source.end), last)
    if not first <= last:
        raise BadSample(
            sample_id,
            f"{source.path}: no frame from {source.start} s to {source.end} s; it has {index.count} frames, from "
            f"{index.times[0]:g} s to {index.times[-1]:g} s",
        )
    return index, first, last - first + 1


def _nearest(index: VideoIndex, seconds: float) -> int:
    """The frame that appears nearest to a time, the later of two; -1 before the first, the count after the last."""
    first = index.times[0]
    if index.constant:
        return min(max(math.floor((seconds - first) * index.fps + 0.5), -1), index.count)
    middles = (index.times[1:] + index.times[:-1]) / 2
    return -1 if seconds < 2 * first - middles[0] else int(np.searchsorted(middles, seconds, "right"))


def within(max_pixels: int) -> Callable[[int, int], tuple[int, int]]:
    """A `size` for load_frames: frames of more than `max_pixels` shrink to that area, aspect kept."""

    def size(height: int, width: int) -> tuple[int, int]:
        scale = min(1.0, math.sqrt(max_pixels / (height * width)))
        return max(1, int(height * scale)), max(1, int(width * scale))

    return size


def frame_count(source: FrameSource, sample_id: str = "?") -> int:
    """Number of frames of the clip. Raises BadSample for a video that cannot be opened."""
    return _span(source, sample_id)[2] if isinstance(source, VideoFile) else len(source)


def frame_rate(source: FrameSource, sample_id: str = "?") -> float | None:
    """Frames per second of the clip (the mean, where its rate varies), None where a folder of images has none."""
    return video_info(source.path, sample_id).fps if isinstance(source, VideoFile) else source.fps


def frame_times(source: FrameSource, sample_id: str = "?") -> Float[np.ndarray, " edges"] | None:
    """Seconds at which each frame of the clip appears, and last, at which its last frame ends.

    Times of a video file count from its own beginning, also where the clip is a part of it. None where a folder of
    images has no rate.
    """
    if isinstance(source, VideoFile):
        index, first, count = _span(source, sample_id)
        return index.times[first : first + count + 1]
    return None if source.fps is None else np.arange(len(source) + 1) / source.fps


def uneven_times(source: FrameSource, sample_id: str = "?") -> Float[np.ndarray, " t"] | None:
    """Seconds at which each frame appears, if the clip is a video file of variable rate; else None."""
    if not isinstance(source, VideoFile) or video_info(source.path, sample_id).constant:
        return None
    return frame_times(source, sample_id)[:-1]


def load_frames(
    source: FrameSource,
    indices: Sequence[int] | Int[np.ndarray, " t"],
    *,
    size: Size | None = None,
    sample_id: str = "?",
) -> UInt8[np.ndarray, "t h w 3"]:
    """The clip's frames at `indices` (any order, repeats allowed) as RGB, resized to `size` if given: (height, width),
    or a function from the frames' own size to it.

    Raises BadSample, naming the file: missing, truncated, unreadable, of another size than its clip's other frames.
    """
    positions = sorted(set(int(i) for i in indices))
    if not positions:
        raise BadSample(sample_id, "no frame was asked for")
    total = frame_count(source, sample_id)
    if positions[0] < 0 or positions[-1] >= total:
        raise BadSample(sample_id, f"frame {positions[-1] if positions[-1] >= total else positions[0]} of {total}")
    frames: dict[int, np.ndarray] = {}
    first_size: tuple[int, ...] | None = None
    for i, name, frame in _decoded(source, positions, sample_id):
        first_size = first_size or frame.shape
        if frame.shape != first_size:
            raise BadSample(
                sample_id,
                f"{name} is {frame.shape[0]}x{frame.shape[1]} in a clip of {first_size[0]}x{first_size[1]} frames",
            )
        frames[i] = resize(frame, size) if size else frame
    return np.stack([frames[int(i)] for i in indices])


def _decoded(source: FrameSource, positions: list[int], sample_id: str) -> Iterator[tuple[int, str, np.ndarray]]:
    """Ascending frames of the clip, each with its position and a name for messages."""
    match source:
        case ImageFiles():
            for i in positions:
                path = source.paths[i]
                yield i, path, decode_image(read(path, sample_id), path, sample_id, source.upright)
        case ImageBytes():
            for i in positions:
                name = f"frame {source.names[i]}"
                yield i, name, decode_image(source.blobs[i], name, sample_id)
        case VideoFile():
            _, first, _ = _span(source, sample_id)
            try:
                for position, frame in video_decoder.frames(source.path, [first + i for i in positions]):
                    yield position - first, f"{source.path}, frame {position}", frame
            except VideoError as error:
                raise BadSample(sample_id, f"{source.path} {error}") from error


def read(path: str, sample_id: str) -> bytes:
    """A sample's file. Raises BadSample naming it."""
    try:
        return paths.read_bytes(path)
    except FileNotFoundError as error:
        raise BadSample(sample_id, f"{path} is missing") from error
    except OSError as error:
        raise BadSample(sample_id, f"{path} cannot be read ({error.strerror or error})") from error
