"""Preparing a clip and its sound on the host, against transformers' feature extractor and image processor.

The other side is what runs without torchvision: `WhisperFeatureExtractor` (PyTorch's Fourier transform over 300 s of
padding) and `Qwen2VLImageProcessorPil` frame by frame. Its patches are normalised floats, ours are bytes that the
accelerator normalises; ours also holds ids, positions, windows and padding. Results are asserted equal before timing,
and PyTorch gets one thread or all of them, whichever is faster.
"""

import functools
import importlib.util
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
from tokenizers import AddedToken, pre_tokenizers
from transformers import Qwen2Tokenizer, WhisperFeatureExtractor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omnir1_jax.data import preprocess
from omnir1_jax.data.preprocess import CELL, PixelBudget
from omnir1_jax.data.preprocess.mel import log_mel
from omnir1_jax.data.preprocess.tokens import SPELLING
from omnir1_jax.errors import InputError

BUDGET = PixelBudget(video_min=16 * CELL, video_max=128 * CELL)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def run(quick: bool) -> dict:
    """Milliseconds: a System 1 prompt of 24 frames of 480 x 854 with and without 10 s of sound; spectrograms."""
    if importlib.util.find_spec("torch") is None:
        raise InputError("the preprocess benchmark compares with PyTorch: pip install torch")
    repeats = 2 if quick else 7
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (24, 60, 107, 3))
    frames = np.kron(coarse, np.ones((1, 8, 8, 1))).astype(np.uint8)[:, :480, :854]
    out = {}
    for seconds in (10, 120):
        wave = (0.2 * rng.standard_normal(seconds * 16000)).astype(np.float32)
        mine = functools.partial(log_mel, wave, sample_rate=16000)
        other = functools.partial(_reference_mel, wave)
        assert np.abs(mine() - other()).max() < 1e-3
        out |= _compare(f"mel_{seconds}s", mine, other, repeats)
    short = (0.2 * rng.standard_normal(160_000)).astype(np.float32)
    tokenizer = _tokenizer()
    bucket = preprocess.bucket_for(
        text_tokens=256, video_frames=[24], audio_seconds=[10.0], budget=BUDGET, max_aspect=4, multiple=128
    )
    silent = {"type": "video", "video": frames}
    one = lambda item: preprocess.prepare(_talk(item), tokenizer, budget=BUDGET)
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": BUDGET.video_min, "longest_edge": BUDGET.video_max})
    other = lambda: images(list(frames), return_tensors="np")["pixel_values"]
    assert np.abs(_normalised(one(silent).cells) - _pairs(other(), 24)).max() < 2 / 255 / min(STD)
    out |= _compare("clip_24_frames", lambda: preprocess.pad_to([one(silent)], bucket), other, repeats)
    talking = silent | {"audio": short, "sample_rate": 16000}
    both = lambda: (other(), _reference_mel(short))
    out |= _compare("clip_24_frames_with_10s", lambda: preprocess.pad_to([one(talking)], bucket), both, repeats)
    return out


def _talk(item: dict) -> list[dict]:
    return [{"role": "user", "content": [item, {"type": "text", "text": "Find the circle that moves to the left."}]}]


def _tokenizer() -> Qwen2Tokenizer:
    """Bytes and the special tokens: enough to place media."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    built = Qwen2Tokenizer(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[])
    built.add_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", *SPELLING.values())])
    return built


@functools.cache
def _extractor() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=128, sampling_rate=16000, hop_length=160, chunk_length=300, n_fft=400)


def _reference_mel(wave: np.ndarray) -> np.ndarray:
    out = _extractor()(wave, sampling_rate=16000, return_attention_mask=True, return_tensors="np")
    return out["input_features"][0].T[out["attention_mask"][0].astype(bool)]


def _normalised(cells: np.ndarray) -> np.ndarray:
    return (cells / 255 - np.array(MEAN)) / np.array(STD)


def _pairs(patches: np.ndarray, frames: int) -> np.ndarray:
    """Patches of single images (each doubled in time) as cells of frame pairs."""
    cells = patches.reshape(frames // 2, 2, -1, 2, 2, 3, 2, 14, 14)[:, :, :, :, :, :, 0]
    return cells.transpose(0, 2, 1, 3, 6, 4, 7, 5).reshape(-1, 2, 28, 28, 3)


def _compare(name: str, mine: Callable, other: Callable, repeats: int) -> dict:
    """Medians in ms, the two sides in turn, and how many times faster ours is."""
    import torch

    before, times = torch.get_num_threads(), {"mine": []}
    try:
        for _ in range(repeats):
            times["mine"].append(_milliseconds(mine))
            for threads in {1, os.cpu_count() or 1}:
                torch.set_num_threads(threads)
                times.setdefault(threads, []).append(_milliseconds(other))
    finally:
        torch.set_num_threads(before)
    median = {key: statistics.median(values) for key, values in times.items()}
    own, best = median.pop("mine"), min(median.values())
    return {f"{name}_ms": own, f"{name}_transformers_ms": best, f"{name}_times_faster": best / own}


def _milliseconds(call: Callable) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)
