"""ReVOS: J, F, accuracy A and robustness R per expression, averaged within expression types.

`clean` scores binary masks. `compat` repeats the published script's arithmetic, whose predictions are PNGs of
0 and 255 compared with annotations of 0 and 1 in uint8: A then fails on all foreground and R counts each
false positive 255 times; overlapping annotations (value 2) wrap around.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from omnir1_jax.evaluation import davis

Mode = Literal["clean", "compat"]
REFERRING, REASONING, NO_TARGET = 0, 1, 2
METRICS = ("J", "F", "A", "R")


class Scores(NamedTuple):
    """One expression's scores, each in [0, 1]."""

    J: float
    F: float
    A: float
    R: float


MISSING = Scores(0.0, 0.0, 0.0, 0.0)


def accuracy(
    gt: Shaped[np.ndarray, "t h w"], pred: Shaped[np.ndarray, "tp hp wp"], mode: Mode = "clean"
) -> Float[np.ndarray, " t"]:
    """A of each frame: share of pixels where prediction and annotation agree (`compat`: hold the same number)."""
    davis.require_same_size(gt, pred)
    if mode == "clean":
        gt, pred = gt > 0, pred > 0
    return (gt == pred).mean((-2, -1))


def robustness(
    gt: Shaped[np.ndarray, "t h w"],
    pred: Shaped[np.ndarray, "tp hp wp"],
    foreground: Shaped[np.ndarray, "tf hf wf"],
    mode: Mode = "clean",
) -> Float[np.ndarray, " t"]:
    """R of each frame: 1 - (false positives) / (pixels of any annotated object), not below 0."""
    davis.require_same_size(gt, pred)
    davis.require_same_size(gt, foreground, "foreground")
    if mode == "clean":
        wrong = np.count_nonzero((gt <= 0) & (pred > 0), axis=(-2, -1)).astype(np.float64)
        base = np.count_nonzero(foreground, axis=(-2, -1))
    else:
        wrong = ((np.uint8(1) - gt.astype(np.uint8)) * pred.astype(np.uint8)).sum((-2, -1), dtype=np.float64)
        base = foreground.sum((-2, -1), dtype=np.float64)
    return np.maximum(1 - wrong / (base + 1e-6), 0.0)


def score_expression(
    objects: UInt8[np.ndarray, "n t h w"],
    pred: Shaped[np.ndarray, "tp hp wp"],
    foreground: Shaped[np.ndarray, "tf hf wf"],
    mode: Mode = "clean",
) -> Scores:
    """Scores of one (video, expression): `objects` are the 0/1 masks of its annotations (n may be 0), summed;
    `pred` as read from the PNGs; `foreground` the OR over all annotations of the video."""
    gt = objects.sum(0, dtype=np.uint8)
    per_frame = (
        davis.jaccard(gt, pred),
        davis.contour(gt, pred),
        accuracy(gt, pred, mode),
        robustness(gt, pred, foreground, mode),
    )
    return Scores(*(float(x.mean()) for x in per_frame))


def as_published(
    clean: Scores,
    objects: UInt8[np.ndarray, "n t h w"],
    pred: Shaped[np.ndarray, "tp hp wp"],
    foreground: Shaped[np.ndarray, "tf hf wf"],
) -> Scores:
    """`clean` with the A and R that the published script gives to PNGs of 0 and 255 (J and F are the same)."""
    gt, png = objects.sum(0, dtype=np.uint8), np.where(pred > 0, np.uint8(255), np.uint8(0))
    a, r = accuracy(gt, png, "compat"), robustness(gt, png, foreground, "compat")
    return clean._replace(A=float(a.mean()), R=float(r.mean()))


def _mean(rows: list[list[float]], column: int) -> float:
    return math.fsum(r[column] for r in rows) / len(rows) if rows else math.nan


def aggregate(results: Iterable[tuple[int, Scores]]) -> Mapping[str, Mapping[str, float]]:
    """Table of the official script from (type_id, scores) of every expression, in percent.

    Each score is rounded to 2 decimals per expression, averaged within `referring` and `reasoning`; `overall`
    is the mean of the two; no-target expressions (type 2) are left out. A type without expressions is NaN,
    and `overall` is then the other type's.
    """
    rows: dict[int, list[list[float]]] = {REFERRING: [], REASONING: []}
    for type_id, scores in results:
        if type_id in rows:
            rows[type_id].append([round(100 * x, 2) for x in scores])
    table: dict[str, dict[str, float]] = {}
    for name, type_id in (("referring", REFERRING), ("reasoning", REASONING)):
        table[name] = {m: _mean(rows[type_id], i) for i, m in enumerate(METRICS)}
    kinds = [table[name] for name in ("referring", "reasoning") if not math.isnan(table[name]["J"])]
    table["overall"] = {m: sum(k[m] for k in kinds) / len(kinds) if kinds else math.nan for m in METRICS}
    for row in table.values():
        row["J&F"] = (row["J"] + row["F"]) / 2
    table["count"] = {"referring": len(rows[REFERRING]), "reasoning": len(rows[REASONING])}
    return table
