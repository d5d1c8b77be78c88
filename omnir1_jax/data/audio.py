"""Decoded sound: 16 kHz mono from a sound file or from a film's own track."""

import io
import math
import os

import av
import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from omnir1_jax.data import media, paths, video_index
from omnir1_jax.data.refs import AudioBytes, AudioFile, AudioSource, BadSample, VideoAudio
from omnir1_jax.data.video_index import VideoError

SAMPLE_RATE = 16_000
# A track shorter than its container declares by more than this was truncated.
_TOLERATED_GAP_S = 0.5
_LONGEST_GAP_S = 3600
_LOWEST_RATE, _HIGHEST_RATE = 1_000, 768_000
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)
# Heads of files that libsndfile reads; what it refuses of these is damaged.
_SNDFILE = (b"RIFF", b"RF64", b"FORM", b"fLaC")
# Of the kin of MP4, at byte 4.
_FILMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def load_audio(source: AudioSource, *, sample_id: str = "?") -> Float[np.ndarray, " n"] | None:
    """float32 samples at 16 kHz, mean of the channels, resampled with soxr (as librosa.load does).

    None only for a video without an audio track whose source does not require one. Raises BadSample, naming the
    file: missing, truncated, unreadable, without a required track, without samples, or with non-finite ones.
    """
    match source:
        case AudioFile():
            name = source.path
            decoded = _decode_sound_file(source.path, sample_id)
        case AudioBytes():
            name = "the sound"
            decoded = _decode_bytes(source.data, name, sample_id)
        case VideoAudio():
            name = source.path
            decoded = _decode_part(source, sample_id)
            if decoded is None and not source.required:
                return None
    if decoded is None:
        raise BadSample(sample_id, f"{name} has no audio track")
    samples, rate = decoded
    if samples.size == 0:
        raise BadSample(sample_id, f"{name} holds no sound")
    if not np.isfinite(samples).all():
        raise BadSample(sample_id, f"{name} holds samples that are not numbers")
    if rate != SAMPLE_RATE:
        samples = _resample(samples, rate)
    return np.ascontiguousarray(samples, np.float32)


def _resample(samples: Float[np.ndarray, " n"], rate: int) -> Float[np.ndarray, " m"]:
    """librosa's resampling with soxr_hq; where librosa is not installed, the same numbers from soxr itself."""
    try:
        import librosa
    except ModuleNotFoundError:
        length = math.ceil(len(samples) * (SAMPLE_RATE / rate))  # as librosa rounds
        resampled = soxr.resample(samples, rate, SAMPLE_RATE, quality="soxr_hq")[:length]
        return np.pad(resampled, (0, length - len(resampled)))
    return librosa.resample(samples, orig_sr=rate, target_sr=SAMPLE_RATE, res_type="soxr_hq")


def _decode_sound_file(path: str, sample_id: str) -> tuple[np.ndarray, int] | None:
    """Samples and rate; None for a film without a track."""
    if not paths.is_remote(path) and os.path.isfile(path):
        with open(path, "rb") as file:
            head = file.read(12)
        if _is_film(head):  # perhaps large: decoded without reading it into memory
            return _decode_track(video_index.file_name(path), path, sample_id)
    return _decode_bytes(media.read(path, sample_id), path, sample_id)


def _is_film(head: bytes) -> bool:
    """Whether a file that begins so is a container that libsndfile does not know: MP4, Matroska, AVI."""
    return head[4:8] in _FILMS or head.startswith(b"\x1a\x45\xdf\xa3") or (head[:4], head[8:12]) == (b"RIFF", b"AVI ")


def _decode_bytes(data: bytes, name: str, sample_id: str) -> tuple[np.ndarray, int] | None:
    """Samples and rate; None for a film without a track."""
    if _is_film(data[:12]):
        return _decode_track(io.BytesIO(data), name, sample_id)
    declared = int.from_bytes(data[4:8], "little") + 8
    # libsndfile plays what is there and says nothing. Writers into pipes leave the size unknown.
    if data[:4] == b"RIFF" and declared - 8 not in _UNKNOWN_SIZES and declared > len(data) + 1:
        raise BadSample(sample_id, f"{name} is truncated: {len(data)} of {declared} bytes are there")
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, TypeError, ValueError) as error:
        if data.startswith(_SNDFILE) or not data or video_index.is_playlist(data[:16]):
            raise BadSample(sample_id, f"{name} is not a readable sound file") from error
        return _decode_track(io.BytesIO(data), name, sample_id)
    if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        raise BadSample(sample_id, f"{name} declares a sampling rate of {rate}")
    return samples.mean(1), rate


def _decode_part(source: VideoAudio, sample_id: str) -> tuple[np.ndarray, int] | None:
    """Samples and rate of the part that the source means; None without a track."""
    decoded = _decode_track(video_index.file_name(media.local_media(source.path, sample_id)), source.path, sample_id)
    if decoded is None:
        return None
    samples, rate = decoded
    first = round((source.start or 0.0) * rate)
    last = None if source.end is None else round(source.end * rate)
    return samples[first:last], rate


def _decode_track(file: str | io.BytesIO, name: str, sample_id: str) -> tuple[np.ndarray, int] | None:
    """Samples of the first audio track, mean over its channels, and their rate; None without a track.

    Args:
      file: what PyAV opens. name: of the file, for messages.
    """
    try:
        with av.open(file) as container:
            if not container.streams.audio:
                return None
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise video_index.undecodable(container, "Audio")
            rate = stream.codec_context.sample_rate
            if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
                raise BadSample(sample_id, f"{name}: an audio track of {rate} samples a second")
            declared = float(stream.duration * stream.time_base) if stream.duration else 0.0
            origin = (container.start_time or 0) / av.time_base
            samples = _collect(container, stream, rate, origin)
    except VideoError as error:
        raise BadSample(sample_id, f"{name} {error}") from error
    except (av.FFmpegError, OSError, ValueError, OverflowError) as error:
        raise BadSample(sample_id, f"{name}: not a readable sound file, and no film with a readable track") from error
    if samples.size / rate < declared - _TOLERATED_GAP_S:
        raise BadSample(
            sample_id, f"{name} is truncated: its audio track ends at {samples.size / rate:.1f} s of {declared:.1f} s"
        )
    return samples, rate


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
