"""Ref-AVS Bench: J, F and S as its own code computes them, per batch of videos.

Inputs are logits at 256x256 (binary predictions as +-20: raw 0/1 values would break J, since sigmoid(0) is
above its 0.4 threshold). These are not the DAVIS measures: F here is a pixel F-beta, maximised over
thresholds. Reports state the batch size, since the last, smaller batch weighs as much as the others.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Shaped

from omnir1_jax.data.frame_sampling import linspace32
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


THRESHOLDS = linspace32(1, NUM_THRESHOLDS)


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


def f_curve(prob: Float[np.ndarray, "h w"], gt: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "255"]:
    """F-beta of one frame at each threshold (prediction = prob >= threshold), all thresholds from one histogram."""
    reached = np.searchsorted(THRESHOLDS, prob, side="right")  # thresholds at or below each probability
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
    videos, scores, count = iter(videos), [], 0
    while batch := list(itertools.islice(videos, batch_videos)):
        scores.append(score_batch(*map(np.concatenate, zip(*batch))))
        count += len(batch)
    means = [math.fsum(column) / len(scores) for column in zip(*scores)] if scores else [math.nan] * 3
    return {**dict(zip("JFS", means)), "batch_videos": float(batch_videos), "videos": float(count)}
