"""What a scene sounds like: one tone per sounding shape, on exactly while it sounds."""

import io
import math

import numpy as np
import soundfile
from jaxtyping import Int16

from omnir1_jax.data.synthetic.world import TONES, Scene

RATE = 16000  # samples per second
LOUDNESS = 0.3  # of full scale
FADE = 0.01  # seconds
_TABLE = np.array([round(32767 * math.sin(2 * math.pi * i / 4096)) for i in range(4096)], np.int64)


def track(scene: Scene) -> Int16[np.ndarray, "samples"]:
    """The clip's sound, mono at 16 kHz. Frame t is heard from t/fps to (t+1)/fps seconds; silence is exact zeros."""
    fps = scene.config.fps
    out = np.zeros(round(scene.config.seconds * RATE), np.int64)
    for shape in scene.shapes:
        if shape.sounds is None:
            continue
        start, end = (min(len(out), round(t / fps * RATE)) for t in shape.sounds)
        out[start:end] += _tone(TONES[shape.tone], end - start)
    return np.clip(out, -32768, 32767).astype(np.int16)


def _tone(frequency: float, samples: int) -> np.ndarray:
    """A tone with two overtones and soft ends. Whole-number arithmetic, so every platform makes the same samples."""
    n = np.arange(samples, dtype=np.int64)
    step = round(frequency / RATE * 4096 * 4096)
    wave = sum(_TABLE[(k * n * step >> 12) & 4095] // (2 * k) for k in (1, 2, 3))
    fade = max(1, min(round(FADE * RATE), samples // 2))
    envelope = np.clip(np.minimum(n, samples - 1 - n), 0, fade)
    return wave * envelope * round(LOUDNESS * 1000) // (1000 * fade)


def to_wav(samples: Int16[np.ndarray, "samples"]) -> bytes:
    """The samples as a 16-bit wav file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
