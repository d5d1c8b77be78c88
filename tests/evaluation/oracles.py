"""The metrics once more, by loops over pixels: slow, obvious, written from the definitions."""

import math

import numpy as np


def boundary(mask):
    h, w = mask.shape
    s = mask > 0
    b = np.zeros((h, w), bool)
    for y in range(h):
        for x in range(w):
            if y == h - 1 and x == w - 1:
                continue
            if y == h - 1:
                b[y, x] = s[y, x] != s[y, x + 1]
            elif x == w - 1:
                b[y, x] = s[y, x] != s[y + 1, x]
            else:
                b[y, x] = s[y, x] != s[y, x + 1] or s[y, x] != s[y + 1, x] or s[y, x] != s[y + 1, x + 1]
    return b


def jaccard(gt, pred):
    inter = union = 0
    for g, p in zip((gt > 0).ravel(), (pred > 0).ravel()):
        inter += g and p
        union += g or p
    return inter / union if union else 1.0


def contour(gt, pred, bound=0.008):
    h, w = gt.shape
    r = math.ceil(bound if bound >= 1 else bound * math.sqrt(h * h + w * w))
    bg, bp = np.argwhere(boundary(gt)), np.argwhere(boundary(pred))
    if len(bg) == 0 or len(bp) == 0:
        return float(len(bg) == len(bp))

    def share(points, others):
        return sum(any((y - v) ** 2 + (x - u) ** 2 <= r * r for v, u in others) for y, x in points) / len(points)

    precision, recall = share(bp, bg), share(bg, bp)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def refavs_f(prob, gt, thresholds):
    """255 passes of float32 arithmetic, as the benchmark's own code does."""
    total, used = np.zeros(len(thresholds), np.float32), 0
    for s, g in zip(prob, gt):
        if not g.any():
            continue
        used += 1
        for i, threshold in enumerate(thresholds):
            y = s >= threshold
            tp = np.float32((y & g).sum())
            precision = tp / (np.float32(y.sum()) + np.float32(1e-20))
            recall = tp / (np.float32(g.sum()) + np.float32(1e-20))
            below = np.float32(0.3) * precision + recall
            if below > 0:
                total[i] += np.float32(1.3) * precision * recall / below
    return float((total / np.float32(used)).max()) if used else 0.0


def blobs(rng, t, h, w, density=0.5):
    """Random masks with connected regions: thresholded, blocky noise, some frames empty or full."""
    k = int(rng.integers(1, 5))
    noise = rng.random((t, -(-h // k), -(-w // k))).repeat(k, 1).repeat(k, 2)[:, :h, :w]
    masks = noise < density
    for i in range(t):
        if rng.random() < 0.15:
            masks[i] = rng.random() < 0.5
    return masks
