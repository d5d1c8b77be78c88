"""Which frames a video file shows, and when: read from its packets without decoding them.

What a container's header says about length and rate is often a guess. The packets say it exactly; the header counts
only as a promise, where it promises more than can be read.
"""

import functools
import os
import re
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import av
import av.logging
import numpy as np
from jaxtyping import Bool, Float, Int

_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD")
_HEIF = (b"heic", b"heix", b"mif1", b"msf1", b"avif")
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_HIGHEST_RATE = 10_000.0
_UNKNOWN_RATE = 25.0
# At constant rate, a frame may be early or late by this share of its duration: containers round times.
_JITTER = 0.25
# Seconds. Tracks that begin at most this far apart count as beginning together: encoders delay sound.
_TRACK_DELAY_S = 0.05
_PROBED_FRAMES = 4
_MAX_INDICES = 32


class VideoError(Exception):
    """A video file cannot be read. The text follows the file's name: "is truncated: ..."."""


class Keyframes(NamedTuple):
    """Packets where decoding can begin, by ascending pts; `packet` counts the stream's packets in the file's order."""

    pts: Int[np.ndarray, " k"]
    dts: Int[np.ndarray, " k"]
    packet: Int[np.ndarray, " k"]


class VideoIndex(NamedTuple):
    """What a video file shows.

    Attributes:
      times: seconds at which each frame appears, counted from where the file's first track begins; one more entry
        says when the last frame ends.
      fps: frames per second: as declared where the timestamps agree, else their mean.
      constant: whether the frames are evenly spaced.
      height, width: pixels, upright: after the rotation that the file asks for.
      pts: timestamps of the frames in the stream's unit; None where only their order identifies them.
      keyframes: of the whole stream; None together with `pts`.
    """

    times: Float[np.ndarray, " edges"]
    fps: float
    constant: bool
    height: int
    width: int
    pts: Int[np.ndarray, " t"] | None
    keyframes: Keyframes | None

    @property
    def count(self) -> int:
        """Number of frames."""
        return len(self.times) - 1


class _Packets(NamedTuple):
    """The stream's packets in the file's order. pts: None where a packet has none."""

    pts: Int[np.ndarray, " p"] | None
    dts: Int[np.ndarray, " p"]
    key: Bool[np.ndarray, " p"]
    shown: Bool[np.ndarray, " p"]


def read(path: str) -> VideoIndex:
    """The index of a local video file, kept in memory until the file changes.

    Raises:
      VideoError: missing, truncated, damaged, without a picture, or of a codec that cannot be decoded.
    """
    check_file(path)
    status = os.stat(path)
    return _read(os.path.abspath(path), status.st_size, status.st_mtime_ns)


def check_file(path: str) -> None:
    """VideoError unless `path` is a regular file, not empty, that names no other files."""
    if not os.path.exists(path):
        raise VideoError("is missing")
    if not os.path.isfile(path):
        raise VideoError("is not a regular file")
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise VideoError(f"cannot be read ({error.strerror or error})") from error
    if not head:
        raise VideoError("is empty, not a video")
    if is_playlist(head):
        raise VideoError("is a playlist, not a video")
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF:
        raise VideoError("is a HEIF picture, not a video; convert it to JPEG or PNG")


def is_playlist(head: bytes) -> bool:
    """Whether a file that begins so would make FFmpeg open other files or addresses."""
    return head.lstrip().startswith(_PLAYLISTS)


def open_container(path: str) -> av.container.InputContainer:
    """PyAV's container of a checked file. Raises VideoError."""
    try:
        container = av.open(file_name(path))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _truncated(path) or VideoError("is not a readable video") from error
    if container.format.name == "tty":
        container.close()
        raise VideoError("is a text, not a video")
    return container


def file_name(path: str) -> str:
    """A local path as PyAV opens it: FFmpeg would take the name 12:30.mp4 for an address."""
    return "file:" + os.path.abspath(path)


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The first stream of moving pictures, ready to decode by the calling thread alone. Raises VideoError."""
    is_cover = lambda stream: bool(stream.disposition & av.stream.Disposition.attached_pic)
    streams = [stream for stream in container.streams.video if not is_cover(stream)]
    if not streams:
        raise VideoError("has no picture, only sound" if container.streams.audio else "has no picture")
    if streams[0].codec_context is None:
        raise undecodable(container, "Video")
    streams[0].codec_context.thread_count = 1  # the pipeline has threads and processes of its own
    return streams[0]


def undecodable(container: av.container.InputContainer, kind: str) -> VideoError:
    """Says which codec the first stream of a kind ("Video", "Audio") is encoded with."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)  # what FFmpeg describes is logged
    try:
        described = re.search(rf"{kind}: (\w+)(?: \((\w+) /)?", container.dumps_format())
    finally:
        av.logging.set_level(level)
    name = "an unknown codec"
    if described is not None:
        name = f"the codec {described[2] if described[1] == 'none' and described[2] else described[1]}"
    encoder = "-c:v libx264" if kind == "Video" else "-c:v copy -c:a aac"
    return VideoError(
        f"is encoded with {name}, which PyAV {av.__version__} cannot decode; convert it, for instance with "
        f"ffmpeg -i FILE {encoder} OUT.mp4"
    )


def packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The stream's packets but incomplete ones, and last the empty one that flushes the decoder."""
    return (packet for packet in container.demux(stream) if not packet.is_corrupt)


@functools.lru_cache(maxsize=_MAX_INDICES)
def _read(path: str, size: int, modified_ns: int) -> VideoIndex:
    with open_container(path) as container:
        stream = video_stream(container)
        # Without sound, time zero is the first frame.
        origin = (container.start_time or 0) / av.time_base if container.streams.audio else None
        declared = float(stream.average_rate or stream.guessed_rate or stream.base_rate or 0)
        try:
            table, probed = _scan(container, stream)
        except (av.FFmpegError, OSError, ValueError, OverflowError) as error:
            raise _truncated(path) or VideoError("is not a readable video") from error
        if error := _truncated(path, stream):
            raise error
        pts = _frame_pts(table, [frame.pts for frame in probed])
        height, width = probed[0].height, probed[0].width
        if probed[0].rotation // 90 % 2:
            height, width = width, height
        seconds = None if pts is None else pts * float(stream.time_base)
    keyframes = None
    if pts is None:
        seconds = _decoded_seconds(path, declared)
    else:
        order = np.flatnonzero(table.key)
        order = order[np.argsort(table.pts[order], kind="stable")]
        keyframes = Keyframes(table.pts[order], table.dts[order], order)
    times, fps, constant = _timing(seconds, declared, origin)
    return VideoIndex(times, fps, constant, height, width, pts, keyframes)


def _scan(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[_Packets, list[av.VideoFrame]]:
    """All packets, and the first few frames: they show whether packets are frames, and of what size."""
    is_vp8 = stream.codec_context.name == "vp8"
    rows, probed, failure = [], [], None
    for packet in packets(container, stream):
        if packet.size:
            hidden = packet.is_discard or (is_vp8 and not memoryview(packet)[0] & 16)  # a frame for reference alone
            rows.append((packet.pts, packet.dts, packet.is_keyframe, not hidden))
        if len(probed) < _PROBED_FRAMES:
            try:
                probed += packet.decode()
            except (av.FFmpegError, ValueError) as error:
                failure = failure or error
    if not probed and isinstance(failure, av.error.PatchWelcomeError | LookupError | NotImplementedError):
        raise undecodable(container, "Video") from failure
    if not probed:
        raise VideoError("holds no frame that can be decoded") from failure
    pts, dts, key, shown = zip(*rows)
    if None in pts:
        return _Packets(None, np.zeros(len(rows), np.int64), np.array(key), np.array(shown)), probed
    dts = [p if d is None else d for p, d in zip(pts, dts)]
    return _Packets(np.array(pts, np.int64), np.array(dts, np.int64), np.array(key), np.array(shown)), probed


def _frame_pts(table: _Packets, probed: Sequence[int | None]) -> Int[np.ndarray, " t"] | None:
    """Timestamps of the frames in order; None where packets and frames do not correspond one to one."""
    if table.pts is None or not table.key[0]:
        return None
    pts = np.sort(table.pts[table.shown])
    if not len(pts) or (np.diff(pts) <= 0).any() or table.pts.min() < table.pts[0]:
        return None
    return pts if pts[: len(probed)].tolist() == list(probed) else None


def _decoded_seconds(path: str, declared: float) -> Float[np.ndarray, " t"]:
    """When each frame appears, found by decoding all; evenly spaced where the timestamps are in no order."""
    with open_container(path) as container:
        times = [frame.time for frame in decode_all(container)]
    if None in times or (np.diff(times) <= 0).any():
        return np.arange(len(times)) / (declared if 0 < declared < _HIGHEST_RATE else _UNKNOWN_RATE)
    return np.array(times, float)


def decode_all(container: av.container.InputContainer) -> Iterator[av.VideoFrame]:
    """All frames from the start. Raises VideoError at damage."""
    stream, count = video_stream(container), 0
    for packet in packets(container, stream):
        try:
            frames = packet.decode()
        except (av.FFmpegError, ValueError) as error:
            if count:
                raise VideoError(f"is damaged: it cannot be decoded after frame {count - 1}") from error
            continue  # the stream begins within a group of pictures
        yield from frames
        count += len(frames)


def _timing(
    seconds: Float[np.ndarray, " t"], declared: float, origin: float | None
) -> tuple[Float[np.ndarray, " edges"], float, bool]:
    """Times and rate as in `VideoIndex`, and whether the rate is constant."""
    count, delay = len(seconds), 0.0 if origin is None else float(seconds[0]) - origin
    start = 0.0 if abs(delay) < _TRACK_DELAY_S else delay
    seconds = seconds - seconds[0]
    mean = (count - 1) / float(seconds[-1]) if count > 1 else 1.0
    for rate in (declared, mean):
        if 0 < rate < _HIGHEST_RATE and np.abs(seconds * rate - np.arange(count)).max() <= _JITTER:
            return start + np.arange(count + 1) / rate, rate, True
    return start + np.append(seconds, 2 * seconds[-1] - seconds[-2]), mean, False


def _truncated(path: str, stream: av.VideoStream | None = None) -> VideoError | None:
    """The error of a file whose own tables promise more bytes than there are."""
    size, promised = os.path.getsize(path), 0
    if stream is not None and "mp4" in stream.container.format.name:
        # A sample's place is exact; boxes that hold no sample may be missing.
        if entries := len(stream.index_entries):
            last = stream.index_entries[entries - 1]
            promised = last.pos + last.size
    else:
        promised = _declared_bytes(path)
    if promised <= size:
        return None
    return VideoError(f"is truncated: {size} of {promised} bytes are there; copy or download it again")


def _declared_bytes(path: str) -> int:
    """The minimum length of a file by the sizes that its outermost elements declare; 0 where they declare none."""
    with open(path, "rb") as file:
        head = file.read(4096)
        if head.startswith(_EBML):
            offset, length = _ebml_size(head, 4)
            if head[offset + length : offset + length + 4] != _SEGMENT:
                return 0
            offset, length = _ebml_size(head, offset + length + 4)
            return offset + length if length else 0
        if head[:4] == b"RIFF":
            length = struct.unpack("<I", head[4:8])[0]
            return 8 + length if length != 0xFFFFFFFF else 0
        return _boxes_end(file) if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip") else 0


def _ebml_size(data: bytes, offset: int) -> tuple[int, int]:
    """Where an element's content begins, and its length; 0 where the length is unknown."""
    width = 9 - data[offset].bit_length() if data[offset : offset + 1] else 9
    if not 1 <= width <= 8:
        return offset, 0
    value = int.from_bytes(data[offset : offset + width], "big") & ((1 << 7 * width) - 1)
    return offset + width, 0 if value == (1 << 7 * width) - 1 else value


def _boxes_end(file) -> int:
    """End of the last box that holds samples or their table."""
    offset = end = 0
    while True:
        file.seek(offset)
        head = file.read(16)
        if len(head) < 8:
            return end
        length, kind = struct.unpack(">I4s", head[:8])
        if length == 1 and len(head) == 16:
            length = struct.unpack(">Q", head[8:])[0]
        if length < 8:  # to the end of the file, or damaged
            return end
        offset += length
        if kind in (b"moov", b"moof", b"mdat"):
            end = offset
