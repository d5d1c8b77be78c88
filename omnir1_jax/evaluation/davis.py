"""DAVIS region similarity J and contour accuracy F, the pair that segmentation tables report.

Definitions follow the davis2017 toolkit. A mask is any integer or boolean array, foreground = value > 0;
void pixels (DAVIS: 255 in the annotation) count for neither side.
"""

import functools
import math

import cv2
import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from omnir1_jax.errors import InputError

BOUND_TH = 0.008
_DECAY_BINS = 4


def require_same_size(gt: np.ndarray, pred: np.ndarray, name: str = "") -> None:
    """Raises InputError naming both sizes where the prediction's shape is not the ground truth's."""
    if gt.shape != pred.shape:
        prefix = f"{name}: " if name else ""
        raise InputError(
            f"{prefix}the prediction is {'x'.join(map(str, pred.shape))} but the ground truth is "
            f"{'x'.join(map(str, gt.shape))}; write predictions at the frames' size"
        )


def _valid(mask: np.ndarray, void: np.ndarray | None) -> np.ndarray:
    mask = mask if mask.dtype == np.bool_ else mask > 0
    return mask if void is None else mask & ~void


def jaccard(
    gt: Shaped[np.ndarray, "*t h w"],
    pred: Shaped[np.ndarray, "*tp hp wp"],
    void: Bool[np.ndarray, "*t h w"] | None = None,
) -> Float[np.ndarray, "*t"]:
    """J of each frame: intersection over union, 1 where the union is empty."""
    require_same_size(gt, pred)
    g, p = _valid(gt, void), _valid(pred, void)
    inter = np.count_nonzero(g & p, axis=(-2, -1))
    union = np.count_nonzero(g | p, axis=(-2, -1))
    return np.where(union == 0, 1.0, inter / np.maximum(union, 1))


def boundary_map(mask: Shaped[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """1 where a pixel differs from its right, lower or lower-right neighbour (only the one neighbour that
    exists in the last row and column; the bottom-right corner is 0)."""
    s = np.ascontiguousarray(_valid(mask, None)).view(np.uint8)
    b = np.zeros(s.shape, np.uint8)
    right, below, corner = s[:-1, 1:], s[1:, :-1], s[1:, 1:]
    pixel = s[:-1, :-1]
    b[:-1, :-1] = (pixel ^ right) | (pixel ^ below) | (pixel ^ corner)
    b[-1, :-1] = s[-1, :-1] ^ s[-1, 1:]
    b[:-1, -1] = s[:-1, -1] ^ s[1:, -1]
    return b


def tolerance(height: int, width: int, bound: float = BOUND_TH) -> int:
    """Radius in pixels within which two boundaries match: a share of the diagonal, or pixels if >= 1."""
    return math.ceil(bound if bound >= 1 else bound * math.hypot(height, width))


@functools.lru_cache(maxsize=64)
def disk(radius: int) -> UInt8[np.ndarray, "k k"]:
    """All offsets with x^2 + y^2 <= radius^2, as a structuring element."""
    x = np.arange(-radius, radius + 1)
    return (x[:, None] ** 2 + x[None] ** 2 <= radius**2).astype(np.uint8)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Half-open (top, bottom, left, right) of the non-zero pixels; all 0 when there are none."""
    x, y, w, h = cv2.boundingRect(mask)
    return y, y + h, x, x + w


def _matches(points: np.ndarray, other_points: np.ndarray, radius: int) -> int:
    """How many pixels of `points` have a pixel of `other_points` within `radius`."""
    top, bottom, left, right = _box(points)
    # Only the dilation near `points` is needed, so only that window is computed.
    y0, y1 = max(top - radius, 0), bottom + radius
    x0, x1 = max(left - radius, 0), right + radius
    window = other_points[y0:y1, x0:x1]
    oy0, oy1, ox0, ox1 = _box(window)
    if oy1 == 0:
        return 0
    oy0, oy1 = max(oy0 - radius, 0), oy1 + radius
    ox0, ox1 = max(ox0 - radius, 0), ox1 + radius
    dilated = cv2.dilate(np.ascontiguousarray(window[oy0:oy1, ox0:ox1]), disk(radius))
    return int(np.count_nonzero(dilated & points[y0:y1, x0:x1][oy0:oy1, ox0:ox1]))


def _contour_frame(gt: np.ndarray, pred: np.ndarray, bound: float) -> float:
    height, width = gt.shape
    bg, bp = boundary_map(gt), boundary_map(pred)
    n_g, n_p = np.count_nonzero(bg), np.count_nonzero(bp)
    if n_p == 0 or n_g == 0:
        # (precision, recall) is (1, 0) or (0, 1): F = 0; with neither boundary (1, 1).
        return 1.0 if n_p == n_g else 0.0
    radius = tolerance(height, width, bound)
    precision = _matches(bp, bg, radius) / n_p
    recall = _matches(bg, bp, radius) / n_g
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def contour(
    gt: Shaped[np.ndarray, "*t h w"],
    pred: Shaped[np.ndarray, "*tp hp wp"],
    void: Bool[np.ndarray, "*t h w"] | None = None,
    bound: float = BOUND_TH,
) -> Float[np.ndarray, "*t"]:
    """F of each frame: harmonic mean of boundary precision and recall within `tolerance`.

    Emptiness is the boundary's, not the mask's: a prediction of the entire frame against an empty ground truth
    has no boundary either and scores F = 1 (and J = 0).
    """
    require_same_size(gt, pred)
    shape = gt.shape[:-2]
    g = _valid(gt, void).reshape(-1, *gt.shape[-2:])
    p = _valid(pred, void).reshape(-1, *gt.shape[-2:])
    return np.array([_contour_frame(a, b, bound) for a, b in zip(g, p)], np.float64).reshape(shape)


def statistics(values: Float[np.ndarray, " t"]) -> dict[str, float]:
    """DAVIS statistics of one object's per-frame values: mean, recall (share above 0.5), decay (first quarter
    minus last quarter; quarters share their end frames)."""
    t = len(values)
    ends = np.round(np.linspace(1, t, _DECAY_BINS + 1) + 1e-10).astype(int) - 1
    first, last = values[ends[0] : ends[1] + 1], values[ends[-2] : ends[-1] + 1]
    return {
        "mean": float(values.mean()),
        "recall": float((values > 0.5).mean()),
        "decay": float(first.mean() - last.mean()),
    }
