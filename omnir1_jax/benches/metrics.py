"""Speed of the metrics on 480x854 frames, one core: frames a second, and the usual ways of computing the same.

The references: F with both boundary maps dilated over the whole frame (the davis toolkit's way), Ref-AVS F with a
pass over the pixels for each of the 255 thresholds. Values are asserted equal.
"""

import statistics
import time

import cv2
import numpy as np
from scipy import ndimage

from omnir1_jax.evaluation import davis, refavs

HEIGHT, WIDTH = 480, 854


def _clip(frames: int, scale: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A moving textured-edge blob and a prediction of it that is off by a few pixels; `scale` of the frame's height."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    out = np.zeros((2, frames, HEIGHT, WIDTH), bool)
    for t in range(frames):
        cy, cx = 240 + 60 * np.sin(t / 5), 300 + 8 * t % 300
        angle = np.arctan2(y - cy, x - cx)
        radius = scale * HEIGHT / 2 * (1 + 0.15 * np.sin(7 * angle + t) + 0.05 * np.sin(23 * angle))
        distance = np.hypot(y - cy, x - cx)
        out[0, t] = distance < radius
        noise = cv2.resize(rng.normal(0, 6, (24, 43)).astype(np.float32), (WIDTH, HEIGHT))
        out[1, t] = distance + noise < radius + 2
    return out[0], out[1]


def _whole_frame(gt: np.ndarray, pred: np.ndarray, dilate) -> np.ndarray:
    values = []
    for g, p in zip(gt, pred):
        bg, bp = davis.boundary_map(g), davis.boundary_map(p)
        element = davis.disk(davis.tolerance(*g.shape))
        precision = (bp & dilate(bg, element)).sum() / bp.sum()
        recall = (bg & dilate(bp, element)).sum() / bg.sum()
        values.append(2 * precision * recall / (precision + recall))
    return np.array(values)


def _sweep(prob: np.ndarray, gt: np.ndarray) -> float:
    total = np.zeros(refavs.NUM_THRESHOLDS, np.float32)
    for s, g in zip(prob, gt):
        for i, threshold in enumerate(refavs.thresholds()):
            y = s >= threshold
            tp = np.float32((y & g).sum())
            precision, recall = tp / np.float32(y.sum() + 1e-20), tp / np.float32(g.sum())
            below = refavs.BETA2 * precision + recall
            total[i] += 0 if below == 0 else (1 + refavs.BETA2) * precision * recall / below
    return float((total / len(prob)).max())


def _fps(frames: int, repeats: int, function, *args) -> float:
    function(*args)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(*args)
        seconds.append(time.perf_counter() - start)
    return frames / statistics.median(seconds)


def run(quick: bool) -> dict:
    """Frames a second (medians) and ratios; OpenCV is held to one thread."""
    frames, repeats = (4, 3) if quick else (24, 7)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    figures: dict[str, float] = {}
    try:
        for name, scale in (("small_object", 0.2), ("object", 0.5), ("frame_filling", 1.2)):
            gt, pred = _clip(frames, scale, 0)
            figures[f"F_fps.{name}"] = _fps(frames, repeats, davis.contour, gt, pred)
            figures[f"J_fps.{name}"] = _fps(frames, repeats, davis.jaccard, gt, pred)
            whole = lambda g, p: _whole_frame(g, p, cv2.dilate)
            figures[f"F_fps_whole_frame_opencv.{name}"] = _fps(frames, repeats, whole, gt, pred)
            np.testing.assert_allclose(davis.contour(gt, pred), whole(gt, pred), atol=1e-12)
        few = slice(0, min(frames, 4))
        naive = lambda g, p: _whole_frame(g, p, ndimage.binary_dilation)
        gt, pred = (m[few] for m in _clip(frames, 0.5, 0))
        figures["F_fps_whole_frame_scipy.object"] = _fps(len(gt), 1 if quick else 3, naive, gt, pred)
        figures["F_speedup_over_scipy"] = figures["F_fps.object"] / figures["F_fps_whole_frame_scipy.object"]
        figures["F_speedup_over_opencv"] = figures["F_fps.object"] / figures["F_fps_whole_frame_opencv.object"]

        rng = np.random.default_rng(0)
        gt = refavs.resize_mask(gt)
        prob = np.clip(gt * 0.6 + rng.random(gt.shape) * 0.4, 0, 1).astype(np.float32)
        figures["refavs_F_fps"] = _fps(len(gt), repeats, refavs.f_score, prob, gt)
        figures["refavs_F_fps_sweep"] = _fps(len(gt), 1 if quick else 3, _sweep, prob, gt)
        figures["refavs_F_speedup"] = figures["refavs_F_fps"] / figures["refavs_F_fps_sweep"]
        np.testing.assert_allclose(refavs.f_score(prob, gt), _sweep(prob, gt), atol=1e-6)
    finally:
        cv2.setNumThreads(threads)
    return figures
