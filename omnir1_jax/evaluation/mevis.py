"""MeViS valid_u and every benchmark scored like it: J and F per expression, flat mean over expressions.

The per-expression protocol of Ref-DAVIS17 and the local scores of Ref-YouTube-VOS aggregate the same way.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from omnir1_jax.evaluation import davis


class Scores(NamedTuple):
    """One expression's J and F, each in [0, 1]."""

    J: float
    F: float


MISSING = Scores(0.0, 0.0)


def score_expression(objects: Shaped[np.ndarray, "n t h w"], pred: Shaped[np.ndarray, "tp hp wp"]) -> Scores:
    """J and F, means over frames; the ground truth is the union of the expression's objects (n may be 0)."""
    gt = (objects > 0).any(0)
    return Scores(float(davis.jaccard(gt, pred).mean()), float(davis.contour(gt, pred).mean()))


def aggregate(results: Iterable[Scores]) -> Mapping[str, float]:
    """Flat means over expressions in percent; J&F is the mean of the two means. NaN without expressions."""
    rows = list(results)
    means = [100 * math.fsum(column) / len(rows) for column in zip(*rows)] if rows else [math.nan, math.nan]
    return {"J": means[0], "F": means[1], "J&F": (means[0] + means[1]) / 2, "count": float(len(rows))}
