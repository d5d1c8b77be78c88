"""Log-mel spectrograms equal to those of transformers' WhisperFeatureExtractor as Qwen2.5-Omni sets it up."""

import functools

import numpy as np
from jaxtyping import Float
from transformers.audio_utils import mel_filter_bank

from omnir1_jax.data.preprocess.settings import MAX_AUDIO_SECONDS, SAMPLE_RATE
from omnir1_jax.errors import InputError

N_FFT, HOP = 400, 160
MAX_SAMPLES = MAX_AUDIO_SECONDS * SAMPLE_RATE


def mel_frames(samples: int) -> int:
    """Mel frames of a waveform: one for every hop begun."""
    return -(-samples // HOP)


def log_mel(
    wave: np.ndarray, *, sample_rate: int | None, bins: int = 128, name: str = "audio"
) -> Float[np.ndarray, "m bins"]:
    """Mel spectrogram of a mono waveform of 16 kHz, 100 frames per second.

    The feature extractor zero-pads to 300 s, transforms it all and keeps the frames that begin within the audio. Here
    only those frames are computed. The padding matters once: the floor is 8 below the maximum over *all* frames, of
    which the two after the end still overlap the audio, and silence is never the maximum.

    Args:
      wave: samples of one channel, nominally within -1 to 1.
      sample_rate: in Hz; the caller has to say it, and it must be 16000.
      bins: mel bands.
      name: of the audio in errors.

    Raises:
      InputError: another or no sampling rate, more than one channel, no samples, over 300 s, non-finite samples.
    """
    wave = np.asarray(wave)
    if sample_rate != SAMPLE_RATE:
        fault = f"is sampled at {sample_rate} Hz" if sample_rate else "comes without its sample_rate"
        raise InputError(f"{name} {fault}: resample it to {SAMPLE_RATE} Hz, e.g. with librosa.resample, and say so")
    if wave.dtype.kind != "f":
        raise InputError(f"{name} must hold floating point samples from -1 to 1, got {wave.dtype}")
    if wave.ndim != 1:
        raise InputError(f"{name} must be one channel [samples], got {wave.shape}: average the channels")
    if not mel_frames(wave.size) >= 3 or wave.size > MAX_SAMPLES:
        raise InputError(
            f"{name} lasts {wave.size / SAMPLE_RATE:g} s; it must be over 0.02 s and at most {MAX_AUDIO_SECONDS} s"
        )
    if not np.isfinite(wave).all():
        raise InputError(f"{name} has samples that are not finite, the first at {int(np.argmin(np.isfinite(wave)))}")
    frame_count = mel_frames(wave.size)
    computed = min(frame_count + 2, MAX_SAMPLES // HOP)
    padded = np.zeros(min(computed * HOP + N_FFT, MAX_SAMPLES), np.float32)
    padded[: wave.size] = wave
    padded = np.pad(padded, N_FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[: computed * HOP : HOP]
    window, filters = _constants(bins)
    spectrum = np.fft.rfft(frames * window, axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    logs = np.log10(np.maximum(power @ filters, 1e-10))
    return ((np.maximum(logs[:frame_count], logs.max() - 8) + 4) / 4).astype(np.float32)


@functools.lru_cache(maxsize=4)
def _constants(bins: int) -> tuple[np.ndarray, np.ndarray]:
    """(periodic Hann window, Slaney's mel filters [frequencies, bins]), both float32."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)
    filters = mel_filter_bank(
        num_frequency_bins=N_FFT // 2 + 1,
        num_mel_filters=bins,
        min_frequency=0.0,
        max_frequency=SAMPLE_RATE / 2,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return window.astype(np.float32), filters.astype(np.float32)
