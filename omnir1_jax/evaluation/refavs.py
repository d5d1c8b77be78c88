"""Ref-AVS Bench: J, F and S as its own code computes them, per batch of videos.

Inputs are logits at 256x256 (binary predictions as +-20: raw 0/1 values would break J, since sigmoid(0) is
above its 0.4 threshold). These are not the DAVIS measures: F here is a pixel F-beta, maximised over
thresholds. Reports state the batch size, since the last, smaller batch weighs as much as the others.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from omnir1_jax.evaluation import davis

SIZE = 256
BATCH_VIDEOS = 4
NUM_THRESHOLDS = 255
BETA2 = np.float32(0.3)
BINARY_LOGIT = 20.0


class BatchScores(NamedTuple):
    """Scores of one batch of frames; S only means something on the null split (lower is better)."""

    J: float
    F: float
    S: float


def thresholds() -> Float[np.ndarray, "255"]:
    """linspace(0, 1 - 1e-10, 255) in float32: the end rounds to 1; built from both ends, as torch does."""
    step = np.float64(np.float32(1) / np.float32(NUM_THRESHOLDS - 1))
    i = np.arange(NUM_THRESHOLDS)
    # torch fuses the multiplication and the addition: one rounding, at the end.
    return np.where(i < NUM_THRESHOLDS // 2, step * i, 1.0 - step * i[::-1]).astype(np.float32)


_THRESHOLDS = thresholds()


def binary_logits(mask: Shaped[np.ndarray, "*n h w"]) -> Float[np.ndarray, "*n h w"]:
    """+-20 logits of a binary prediction (foreground = value > 0)."""
    return np.where(mask > 0, np.float32(BINARY_LOGIT), np.float32(-BINARY_LOGIT))


def resize_mask(mask: Shaped[np.ndarray, "n h w"], size: int = SIZE) -> Bool[np.ndarray, "n s s"]:
    """A mask at the metric's size: bilinear, then > 0, so a pixel touched by any foreground is foreground.

    The benchmark does so with its ground truth; binary predictions go the same way, so that a perfect one scores 1.
    """
    resized = [cv2.resize((m > 0).astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR) for m in mask]
    return np.stack(resized) > 0 if resized else np.zeros((0, size, size), bool)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return (np.float32(1) / (np.float32(1) + np.exp(-x.astype(np.float32)))).astype(np.float32)


def j_score(prob: Float[np.ndarray, "n h w"], gt: Bool[np.ndarray, "n h w"]) -> float:
    """Mean over frames of IoU at probability > 0.4; a frame with empty gt scores its share of pixels at 0."""
    p = prob > np.float32(0.4)
    pixels = gt[0].size
    inter = np.count_nonzero(p & gt, axis=(1, 2))
    union = np.count_nonzero(p | gt, axis=(1, 2))
    empty = ~gt.any((1, 2))
    inter = np.where(empty, pixels - np.count_nonzero(p, axis=(1, 2)), inter)
    union = np.where(empty, pixels, union)
    return float(np.mean(inter / (union + 1e-7)))


def _reached(prob: Float[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Number of thresholds at or below each probability, in 0..255."""
    guess = np.minimum((prob * np.float32(NUM_THRESHOLDS - 1)).astype(np.int32), NUM_THRESHOLDS - 1)
    # The guess is off by at most one: float32 thresholds are rounded.
    guess -= prob < _THRESHOLDS[guess]
    above = np.minimum(guess + 1, NUM_THRESHOLDS - 1)
    return guess + ((prob >= _THRESHOLDS[above]) & (above > guess)) + 1


def f_curve(prob: Float[np.ndarray, "h w"], gt: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "255"]:
    """F-beta of one frame at each threshold (prediction = prob >= threshold), all thresholds from one histogram."""
    reached = _reached(prob)
    bins = NUM_THRESHOLDS + 1
    positive = np.bincount(reached.ravel(), minlength=bins)
    hits = np.bincount(reached[gt], minlength=bins)
    # Pixels predicted at threshold i are those that reached more than i thresholds.
    y = positive[::-1].cumsum()[::-1][1:].astype(np.float32)
    tp = hits[::-1].cumsum()[::-1][1:].astype(np.float32)
    eps = np.float32(1e-20)
    precision, recall = tp / (y + eps), tp / (np.float32(np.count_nonzero(gt)) + eps)
    with np.errstate(invalid="ignore"):
        f = (np.float32(1) + BETA2) * precision * recall / (BETA2 * precision + recall)
    return np.nan_to_num(f, nan=0.0)


def f_score(prob: Float[np.ndarray, "n h w"], gt: Bool[np.ndarray, "n h w"]) -> float:
    """Max over thresholds of the curve averaged over frames with gt; 0 if there is none."""
    curves = [f_curve(p, g) for p, g in zip(prob, gt) if g.any()]
    if not curves:
        return 0.0
    total = np.zeros(NUM_THRESHOLDS, np.float32)
    for curve in curves:
        total += curve
    return float((total / np.float32(len(curves))).max())


def s_score(prob: Float[np.ndarray, "n h w"]) -> float:
    """sqrt of the share of pixels above 0.5 in the batch: 0 when nothing is predicted."""
    return math.sqrt(np.count_nonzero(prob > np.float32(0.5)) / prob.size)


def score_batch(logits: Float[np.ndarray, "np hp wp"], gt: Bool[np.ndarray, "n h w"]) -> BatchScores:
    """J, F, S of one batch of frames (published setting: 4 videos of 10 frames, 256x256)."""
    davis.require_same_size(gt, logits)
    prob = _sigmoid(logits)
    return BatchScores(j_score(prob, gt), f_score(prob, gt), s_score(prob))


def aggregate(videos: Iterable[tuple[np.ndarray, np.ndarray]], batch_videos: int = BATCH_VIDEOS) -> Mapping[str, float]:
    """Means over batches of `batch_videos` consecutive videos, each given as (logits, gt)."""
    scores, batch = [], []

    def close() -> None:
        if batch:
            logits, gts = (np.concatenate(x) for x in zip(*batch))
            scores.append(score_batch(logits, gts))
            batch.clear()

    videos_seen = 0
    for video in videos:
        videos_seen += 1
        batch.append(video)
        if len(batch) == batch_videos:
            close()
    close()
    means = [math.fsum(column) / len(scores) for column in zip(*scores)] if scores else [math.nan] * 3
    return {**dict(zip("JFS", means)), "batch_videos": float(batch_videos), "videos": float(videos_seen)}
