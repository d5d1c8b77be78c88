"""A clip with its masks as an mp4 that plays in a browser: H.264 with AAC sound, its index at the front."""

import itertools
import pathlib
import tempfile
from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np
from etils import epath
from jaxtyping import Bool, Float, UInt8

from omnir1_jax.cli import atomic_path
from omnir1_jax.errors import InputError
from omnir1_jax.reporting import draw
from omnir1_jax.reporting.pictures import marked
from omnir1_jax.tasks.description import Number

ENCODERS = ("libx264", "libopenh264", "h264_videotoolbox")  # in software, without a device
CRF = 20
LEAST_SIDE = 480
TICK = Fraction(1, 90000)  # seconds: time unit of frames that are not evenly spaced
AUDIO_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)  # of AAC


def h264_encoder(names: tuple[str, ...]) -> str:
    """The first H.264 encoder that this build of FFmpeg has.

    Raises:
      InputError: there is none.
    """
    for name in names:
        try:
            av.Codec(name, "w")
        except av.codec.codec.UnknownCodecError:
            continue
        return name
    raise InputError(
        f"PyAV {av.__version__} has no H.264 encoder ({', '.join(names)}): install the wheel from PyPI "
        "(pip install --force-reinstall av), which brings one"
    )


def overlay(
    frames: Iterable[UInt8[np.ndarray, "h w 3"]], masks: Iterable[Bool[np.ndarray, "y x"]]
) -> Iterable[UInt8[np.ndarray, "h w 3"]]:
    """Frames with the predicted masks filled and outlined.

    Frames of less than `LEAST_SIDE` pixels are enlarged by a whole number, so that lines stay thin beside objects.
    """
    for frame, mask in zip(frames, masks):
        grow = max(1, -(-LEAST_SIDE // max(frame.shape[:2])))
        frame = draw.fit(frame, frame.shape[1] * grow, frame.shape[0] * grow)
        yield draw.outlined(marked(frame, mask), mask, draw.PREDICTED)


def write(
    target: epath.PathLike,
    frames: Iterable[UInt8[np.ndarray, "h w 3"]],
    fps: Number | Fraction,
    audio: Float[np.ndarray, " samples"] | Float[np.ndarray, "channels samples"] | None = None,
    sample_rate: int = 16000,
    times: Float[np.ndarray, " t"] | None = None,
) -> epath.Path:
    """Encodes frames of one size, taken one by one, and returns the path.

    Args:
      fps: frames per second; the mean, where `times` are given.
      times: seconds at which each frame appears, ascending from 0 on, where they are not evenly spaced.
      audio: samples in [-1, 1], one or two channels, clipped to that range. None for a silent video.

    Raises:
      InputError: no frame, frames of different sizes, a rate that is not positive, or no encoder.
    """
    rate = Fraction(fps).limit_denominator(1001)
    if rate <= 0:
        raise InputError(f"{target}: {fps} frames per second is not a valid rate")
    encoder = h264_encoder(ENCODERS)
    with tempfile.TemporaryDirectory(prefix="omnir1_jax_video_") as folder:
        # Written locally first: the index is moved to the front at the end, which needs a real file.
        path = pathlib.Path(folder, "video.mp4")
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            _encode(container, str(target), encoder, iter(frames), rate, audio, sample_rate, times)
        with atomic_path(target) as scratch, scratch.open("wb") as out:
            out.write(path.read_bytes())
    return epath.Path(target)


def _encode(container, name: str, encoder: str, frames, rate: Fraction, audio, sample_rate: int, times) -> None:
    first = next(frames, None)
    if first is None:
        raise InputError(f"{name}: a video needs at least one frame")
    height, width = draw.even(first).shape[:2]
    video = container.add_stream(encoder, rate=rate)
    video.width, video.height, video.pix_fmt = width, height, "yuv420p"
    unit = 1 / rate if times is None else TICK
    video.codec_context.time_base = unit
    if encoder == "libx264":
        video.options = {"crf": str(CRF), "preset": "medium"}
    else:
        video.bit_rate = max(500_000, round(width * height * float(rate) * 0.15))
    # The matrix that players take where nothing is said: of standard definition below 720 lines, else of high.
    matrix, space = ("ITU709", 1) if height >= 720 else ("ITU601", 6)
    for part in ("colorspace", "color_primaries", "color_trc"):
        setattr(video.codec_context, part, space)
    video.codec_context.color_range = 1  # limited
    sound = None if audio is None else _Sound(container, name, audio, sample_rate)
    for count, frame in enumerate(itertools.chain([first], frames)):
        if frame.shape != first.shape:
            raise InputError(f"{name}: frame {count} is {frame.shape[:2]}, the first {first.shape[:2]}; give one size")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(draw.even(frame)), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace=matrix, dst_color_range="MPEG")
        picture.pts = count if times is None else round(float(times[count]) / unit)
        picture.time_base = unit
        container.mux(video.encode(picture))
        if sound:
            sound.until(picture.pts * unit)  # interleaved, so that a player need not jump and the muxer need not wait
    container.mux(video.encode(None))
    if sound:
        sound.finish()


class _Sound:
    """Encodes the sound of a video into the container."""

    SIZE = 1024  # samples of an AAC frame

    def __init__(self, container, name: str, audio: np.ndarray, rate: int):
        self._samples = np.clip(np.atleast_2d(audio), -1.0, 1.0).astype(np.float32)
        channels = len(self._samples)
        if channels not in (1, 2):
            raise InputError(f"{name}: sound of {channels} channels; give one or two as [channels, samples]")
        if rate not in AUDIO_RATES:
            raise InputError(f"{name}: AAC has no {rate} Hz; resample to one of {', '.join(map(str, AUDIO_RATES))}")
        self._container, self._rate, self._at = container, rate, 0
        self._stream = container.add_stream("aac", rate=rate, layout="stereo" if channels == 2 else "mono")

    def until(self, seconds: Fraction | float) -> None:
        """Encodes the samples before a time."""
        while self._at < min(self._samples.shape[1], seconds * self._rate):
            part = np.ascontiguousarray(self._samples[:, self._at : self._at + self.SIZE])
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=self._stream.layout.name)
            frame.sample_rate, frame.pts, frame.time_base = self._rate, self._at, Fraction(1, self._rate)
            self._container.mux(self._stream.encode(frame))
            self._at += self.SIZE

    def finish(self) -> None:
        """Encodes the rest."""
        self.until(np.inf)
        self._container.mux(self._stream.encode(None))
