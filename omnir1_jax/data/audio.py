"""Decoded sound: 16 kHz mono from a sound file or from a video's own track."""

import io

import av
import librosa
import numpy as np
import soundfile
from jaxtyping import Float

from omnir1_jax.data import media, paths
from omnir1_jax.data.samples import AudioBytes, AudioFile, AudioSource, BadSample, VideoAudio

SAMPLE_RATE = 16_000
# A track shorter than its container declares by more than this was cut off.
_TOLERATED_GAP_S = 0.5
_LONGEST_GAP_S = 3600
_LOWEST_RATE, _HIGHEST_RATE = 1_000, 768_000
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)


def load_audio(
    source: AudioSource, *, sample_rate: int = SAMPLE_RATE, sample_id: str = "?"
) -> Float[np.ndarray, " n"] | None:
    """float32 samples, mean of the channels, resampled with soxr (as librosa.load does).

    None only for a video without an audio track whose source does not require one. Raises BadSample, naming the
    file: missing, cut short, unreadable, without a required track, without samples, or with non-finite ones.
    """
    match source:
        case AudioFile():
            name = source.path
            samples, rate = _decode_file(_read(source.path, sample_id), name, sample_id)
        case AudioBytes():
            name = "the sound"
            samples, rate = _decode_file(source.data, name, sample_id)
        case VideoAudio():
            name = source.path
            decoded = _decode_track(source, sample_id)
            if decoded is None:
                if source.required:
                    raise BadSample(sample_id, f"{name} has no audio track")
                return None
            samples, rate = decoded
    if samples.size == 0:
        raise BadSample(sample_id, f"{name} holds no sound")
    if not np.isfinite(samples).all():
        raise BadSample(sample_id, f"{name} holds samples that are not numbers")
    if rate != sample_rate:
        samples = librosa.resample(samples, orig_sr=rate, target_sr=sample_rate, res_type="soxr_hq")
    return np.ascontiguousarray(samples, np.float32)


def _read(path: str, sample_id: str) -> bytes:
    try:
        return paths.read_bytes(path)
    except FileNotFoundError as error:
        raise BadSample(sample_id, f"{path} is missing") from error
    except OSError as error:
        raise BadSample(sample_id, f"{path} cannot be read ({error.strerror or error})") from error


def _decode_file(data: bytes, name: str, sample_id: str) -> tuple[np.ndarray, int]:
    declared = int.from_bytes(data[4:8], "little") + 8
    # libsndfile plays what is there and says nothing. Writers into pipes leave the size unknown.
    if data[:4] == b"RIFF" and declared - 8 not in _UNKNOWN_SIZES and declared > len(data) + 1:
        raise BadSample(sample_id, f"{name} is cut short: {len(data)} of {declared} bytes")
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, TypeError, ValueError) as error:
        raise BadSample(sample_id, f"{name} is not a readable sound file") from error
    if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        raise BadSample(sample_id, f"{name} declares a sampling rate of {rate}")
    return samples.mean(1), rate


def _decode_track(source: VideoAudio, sample_id: str) -> tuple[np.ndarray, int] | None:
    """(samples of the first channel layout, mean over channels; rate) of the asked part, None without a track."""
    path = media.local_media(source.path, sample_id)
    try:
        with av.open(path) as container:
            if not container.streams.audio:
                return None
            stream = container.streams.audio[0]
            context = stream.codec_context
            rate = context.sample_rate if context is not None else 0
            if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
                raise BadSample(sample_id, f"{path}: an audio track of no known kind, {rate} samples a second")
            declared = float(stream.duration * stream.time_base) if stream.duration else 0.0
            origin = (container.start_time or 0) / av.time_base
            pieces = _collect(container, stream, rate, origin)
    except (av.FFmpegError, OSError, ValueError, OverflowError) as error:
        raise BadSample(sample_id, f"{path}: its audio track cannot be decoded") from error
    samples = pieces if pieces.size else np.zeros(0, np.float32)
    if samples.size / rate < declared - _TOLERATED_GAP_S:
        raise BadSample(sample_id, f"{path}: the audio track ends at {samples.size / rate:.1f} s of {declared:.1f} s")
    first = round((source.start or 0.0) * rate)
    last = None if source.end is None else round(source.end * rate)
    return samples[first:last], rate


def _collect(container: av.container.InputContainer, stream: av.AudioStream, rate: int, origin: float) -> np.ndarray:
    """The whole track from the container's time zero on: silence where the track begins later or has gaps."""
    resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=rate)
    pieces: list[np.ndarray] = []
    filled = 0
    for frame in container.decode(stream):
        if frame.pts is not None:
            start = round((float(frame.pts * frame.time_base) - origin) * rate)
            if start - filled > _LONGEST_GAP_S * rate:
                raise ValueError("timestamps jump")
            if start - filled > rate // 20:
                pieces.append(np.zeros(start - filled, np.float32))
                filled = start
        for piece in resampler.resample(frame):
            mono = piece.to_ndarray().mean(0, dtype=np.float32)
            pieces.append(mono)
            filled += mono.size
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
