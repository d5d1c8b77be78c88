"""The two protocols of Ref-DAVIS17.

By expression, `mevis.aggregate` over all (video, expression). Unsupervised, the DAVIS 2017 unsupervised evaluation of
four submissions, one per annotator: objects of a submission are merged into one label map,
matched to the annotated objects by the Hungarian algorithm and scored with void pixels (255) left out.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from omnir1_jax.data.refdavis import ANNOTATORS, VOID
from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import davis

MAX_PROPOSALS = 20
BACKGROUND = 0.1  # what an object's probability has to exceed


def submission_expressions(num_expressions: int) -> list[list[int]]:
    """Expression numbers of each of the four submissions, in object order (expression = object*4 + annotator)."""
    if num_expressions % len(ANNOTATORS):
        raise InputError(f"Ref-DAVIS17: {num_expressions} expressions in a video is not a multiple of 4 (4 per object)")
    return [list(range(a, num_expressions, len(ANNOTATORS))) for a in range(len(ANNOTATORS))]


def label_map(scores: Shaped[np.ndarray, "n t h w"]) -> UInt8[np.ndarray, "t h w"]:
    """One submission's label map: argmax over objects' probabilities (or 0/1 masks), 0 where none is above
    `BACKGROUND`; the first object wins a tie."""
    n = len(scores)
    if n == 0:
        return np.zeros(scores.shape[1:], np.uint8)
    best = scores.argmax(0)
    value = np.take_along_axis(scores, best[None], 0)[0]
    return np.where(value > BACKGROUND, best + 1, 0).astype(np.uint8)


def _split(labels: np.ndarray, count: int) -> Bool[np.ndarray, "n t h w"]:
    return labels[None] == np.arange(1, count + 1, dtype=labels.dtype)[:, None, None, None]


def _pairs(metric, gt: np.ndarray, pred: np.ndarray, void: np.ndarray) -> Float[np.ndarray, "p g t"]:
    return np.stack([np.stack([metric(g, p, void) for g in gt]) for p in pred])


def score_video(
    annotation: UInt8[np.ndarray, "t h w"], labels: UInt8[np.ndarray, "tp hp wp"], name: str = ""
) -> tuple[Float[np.ndarray, "n t"], Float[np.ndarray, "n t"]]:
    """J and F of each matched pair on each frame, n = objects of the annotation's first frame.

    The assignment maximises (mean J + mean F)/2; a submission with fewer objects is padded with empty ones.
    """
    davis.require_same_size(annotation, labels, name)
    void = annotation == VOID
    annotation = np.where(void, 0, annotation)
    num_gt = int(annotation[0].max())
    if num_gt == 0:
        raise InputError(f"{name or 'video'}: the annotation's first frame has no object; DAVIS counts objects there")
    num_pred = int(labels.max())
    if num_pred > MAX_PROPOSALS:
        raise InputError(f"{name or 'video'}: {num_pred} proposals; DAVIS accepts at most {MAX_PROPOSALS}")
    gt, pred = _split(annotation, num_gt), _split(labels, max(num_pred, num_gt))
    j, f = _pairs(davis.jaccard, gt, pred, void), _pairs(davis.contour, gt, pred, void)
    from scipy.optimize import linear_sum_assignment  # here, because it takes half a second to import

    rows, columns = linear_sum_assignment(-(j.mean(2) + f.mean(2)) / 2)
    return j[rows, columns], f[rows, columns]


def aggregate_unsupervised(
    submissions: Sequence[Iterable[tuple[Float[np.ndarray, "n t"], Float[np.ndarray, "n t"]]]],
) -> Mapping[str, float]:
    """Percentages over submissions: mean over objects of all videos within a submission, then over submissions.

    Each submission is an iterable of `score_video` results, one per video.
    """
    tables = []
    for submission in submissions:
        objects = [(davis.statistics(j), davis.statistics(f)) for js, fs in submission for j, f in zip(js, fs)]
        if not objects:
            raise InputError("Ref-DAVIS17: a submission without videos cannot be scored")
        row = {}
        for name, index in (("J", 0), ("F", 1)):
            for key, label in (("mean", name), ("recall", f"{name}-recall"), ("decay", f"{name}-decay")):
                row[label] = 100 * float(np.mean([o[index][key] for o in objects]))
        tables.append(row)
    table = {key: float(np.mean([t[key] for t in tables])) for key in tables[0]}
    return {**table, "J&F": (table["J"] + table["F"]) / 2, "submissions": float(len(tables))}
