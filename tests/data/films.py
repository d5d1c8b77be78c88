"""Small films whose frames tell their own number, written by PyAV: of any codec, container and timestamps."""

import pathlib
import struct
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from jaxtyping import Float, UInt8

HEIGHT, WIDTH, BITS = 64, 96, 8
MILLISECOND = Fraction(1, 1000)
# One frame per second for ten seconds, then 30 per second: a screen recording.
UNEVEN_MS = tuple(1000 * i for i in range(10)) + tuple(10_000 + 33 * i for i in range(30))


def bars(number: int, height: int = HEIGHT, width: int = WIDTH) -> UInt8[np.ndarray, "h w 3"]:
    """The number in binary as black and white bars, which survive lossy coding; the top quarter is coloured."""
    bits = np.array([255 * (number >> k & 1) for k in range(BITS)], np.uint8)
    image = np.repeat(np.repeat(bits, -(-width // BITS))[None, :width, None], height, 0).repeat(3, 2)
    image[: height // 4] = (200, 40, 90)
    return image


def number(frame: UInt8[np.ndarray, "h w 3"]) -> int:
    """The number that a frame shows."""
    height, width = frame.shape[:2]
    centres = frame[height * 5 // 8, -(-width // BITS) // 2 :: -(-width // BITS), 1]
    return sum(1 << k for k in range(BITS) if centres[k] > 127)


def tone(seconds: float, rate: int = 48_000, channels: int = 2) -> Float[np.ndarray, "channels samples"]:
    wave = 0.4 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    return np.stack([wave.astype(np.float32)] * channels)


def write(
    path: pathlib.Path,
    frames: int = 40,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: int = 10,
    *,
    ms: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    sound: np.ndarray | None = None,
    sound_codec: str = "aac",
    size: tuple[int, int] = (HEIGHT, WIDTH),
) -> str:
    """A film whose frame k shows k.

    Args:
      ms: timestamps of the frames, where they are not evenly spaced.
      options, container: of the encoder and of the muxer.
      sound: [channels, samples] at 48 kHz, one or two channels.

    Returns:
      The path.
    """
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        if ms is not None:
            stream.codec_context.time_base = MILLISECOND
        track = None
        if sound is not None:
            track = out.add_stream(sound_codec, rate=48_000, layout=("mono", "stereo")[len(sound) - 1])
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(bars(k, *size), format="rgb24").reformat(format=pixels)
            if ms is not None:
                frame.pts, frame.time_base = ms[k], MILLISECOND
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if track is not None:
            form = track.codec_context.format
            data = sound if form.is_planar else sound.T.reshape(1, -1)
            data = (data * 32767).astype(np.int16) if form.name.startswith("s16") else data
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(data), form.name, track.layout.name)
            frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
            out.mux(track.encode(frame))
            out.mux(track.encode(None))
    return str(path)


def trim(source: str, target: pathlib.Path, start: float) -> str:
    """A copy from `start` seconds on, without encoding anew: an edit list hides what precedes it."""
    with av.open(source) as film, av.open(str(target), "w") as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in film.streams}
        film.seek(round(start * av.time_base))
        for packet in film.demux():
            if packet.dts is not None:
                shift = round(start / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    return str(target)


def turned(source: str, target: pathlib.Path, quarters: int) -> str:
    """A copy that asks to be shown turned clockwise by quarters, as phones write."""
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarters]
    unit = 0x10000
    packed = lambda cos, sin: struct.pack(
        ">9i", cos * unit, sin * unit, 0, -sin * unit, cos * unit, 0, 0, 0, 0x40000000
    )
    data = bytearray(pathlib.Path(source).read_bytes())
    at = data.index(packed(1, 0), data.index(b"tkhd"))
    data[at : at + 36] = packed(cos, sin)
    target.write_bytes(data)
    return str(target)


def decoded(path: str) -> list[UInt8[np.ndarray, "h w 3"]]:
    """All frames as PyAV decodes them from the start, upright."""
    with av.open(path) as film:
        return [np.rot90(f.to_ndarray(format="rgb24"), f.rotation // 90 % 4) for f in film.decode(video=0)]
