"""Frames of a video file by position, decoded from the keyframe before them.

Frames are identified by their timestamps, so that what follows a seek is exactly what decoding from the start gives.
Where a seek leads elsewhere, or only their order identifies the frames, the file is decoded from its start.
"""

from collections import deque
from collections.abc import Iterator, Sequence

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from omnir1_jax.data import video_index
from omnir1_jax.data.video_index import VideoError, VideoIndex

# Packets. Decoding this many takes less time than a seek.
_MIN_SKIP = 8


class _InexactSeek(Exception):
    """A seek did not lead to the keyframe, or what follows it is not the wanted frame."""


def frames(path: str, positions: Sequence[int]) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
    """Frames at ascending positions as upright RGB, each with its position.

    Raises:
      VideoError: as `video_index.read`, or a frame that cannot be decoded.
    """
    index = video_index.read(path)
    if index.pts is None:
        yield from _counted(path, index, positions)
        return
    remaining = deque(positions)
    try:
        for position, pixels in _timed(path, index, positions, seeks=True):
            yield position, pixels
            remaining.popleft()
    except _InexactSeek:
        yield from _timed(path, index, list(remaining), seeks=False)


def _damaged(position: int) -> VideoError:
    return VideoError(f"is damaged: frame {position} cannot be decoded")


def _counted(path: str, index: VideoIndex, positions: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Frames identified by their order."""
    requested, convert = set(positions), _Converter(index)
    with video_index.open_container(path) as container:
        for position, frame in enumerate(video_index.decode_all(container)):
            if position in requested:
                yield position, convert(frame)
            if position >= positions[-1]:
                return
    raise _damaged(positions[-1])


def _timed(path: str, index: VideoIndex, positions: Sequence[int], seeks: bool) -> Iterator[tuple[int, np.ndarray]]:
    """Frames identified by their timestamps."""
    convert = _Converter(index)
    with video_index.open_container(path) as container:
        decoder = _Decoder(container, index, seeks)
        for position in positions:
            yield position, convert(decoder.frame(position))


class _Converter:
    """Decoded frames as upright RGB of the film's size: a stream may change size on the way, as browsers record."""

    def __init__(self, index: VideoIndex):
        self._index, self._reformatter = index, VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
        turns = frame.rotation // 90 % 4  # counterclockwise
        size = (self._index.width, self._index.height)[:: -1 if turns % 2 else 1]
        pixels = self._reformatter.reformat(frame, *size, format="rgb24", threads=1).to_ndarray()
        return np.ascontiguousarray(np.rot90(pixels, turns))


class _Decoder:
    """Decodes forward, skipping to keyframes, and finds frames by timestamp."""

    def __init__(self, container: av.container.InputContainer, index: VideoIndex, seeks: bool):
        self._container, self._index, self._seeks = container, index, seeks
        self._stream = video_index.video_stream(container)
        self._packets = video_index.packets(container, self._stream)
        self._packet = -1  # the last one decoded
        self._frames: deque[av.VideoFrame] = deque()  # decoded and not passed
        self._has_sought = False

    def frame(self, position: int) -> av.VideoFrame:
        """The frame at a position; positions must not descend."""
        pts = int(self._index.pts[position])
        keyframe = int(np.searchsorted(self._index.keyframes.pts, pts, "right")) - 1
        needed = int(self._index.keyframes.packet[keyframe]) if keyframe >= 0 else 0
        if self._seeks and needed > self._packet + _MIN_SKIP:
            self._seek(keyframe)
        while True:
            while self._frames and (self._frames[0].pts is None or self._frames[0].pts < pts):
                self._frames.popleft()
            if self._frames and self._frames[0].pts == pts:
                frame = self._frames[0]
                if self._has_sought and frame.is_corrupt:
                    raise _InexactSeek
                return frame
            packet = None if self._frames else next(self._packets, None)
            if packet is None:
                raise _InexactSeek if self._has_sought else _damaged(position)
            self._packet += 1
            try:
                self._frames.extend(packet.decode())
            except (av.FFmpegError, ValueError) as error:
                if self._packet >= needed:
                    raise _damaged(position) from error

    def _seek(self, keyframe: int) -> None:
        """Leads to a keyframe's own packet, the next to decode."""
        pts, dts, number = (int(column[keyframe]) for column in self._index.keyframes)
        try:
            # Matroska's table is by pts, that of others by dts.
            self._container.seek(pts if "matroska" in self._container.format.name else dts, stream=self._stream)
            self._packets = video_index.packets(self._container, self._stream)
            packet = next(self._packets)
            while packet.size and packet.pts != pts:
                packet = next(self._packets)
            if not packet.size:
                raise _InexactSeek
            self._frames = deque(packet.decode())
        except (av.FFmpegError, OSError, ValueError) as error:
            raise _InexactSeek from error
        self._packet, self._has_sought = number, True
