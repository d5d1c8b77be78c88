"""Scores a tree of predicted masks against a dataset's reader: the benchmark's table."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from omnir1_jax.data import paths
from omnir1_jax.data import refdavis as data_refdavis
from omnir1_jax.data.masks import decode_label_map, decode_masks
from omnir1_jax.data.refs import BadSample, ClipRef, Reader
from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import mevis, predictions, refavs, refdavis, revos


class Row(NamedTuple):
    """One expression's result: `scores` in [0, 1]; `missing`: no folder of predictions, all scores 0."""

    sample_id: str
    type_id: int
    scores: Mapping[str, float]
    missing: bool


def _open(reader: Reader, position: int) -> ClipRef:
    try:
        ref = reader[position]
    except BadSample as error:
        # A benchmark with an unreadable sample has no score.
        raise InputError(f"the ground truth of {error}") from error
    if ref.masks is None:
        raise InputError(f"{ref.sample_id} has no masks to compare with: predictions for this split go to a server")
    return ref


def rules(reader: Reader) -> str:
    """The rules of a reader's table: "revos" if its split has the foreground masks of A and R, else "mevis"."""
    return "revos" if (reader.name, reader.split) == ("revos", "valid") else "mevis"


def annotated(ref: ClipRef, predicted: np.ndarray) -> tuple[Sequence[int], np.ndarray]:
    """The scored frames and their masks: all frames, for ReasonVOS those with an annotation."""
    if (chosen := ref.extra.get("annotated")) is None:
        return range(len(predicted)), predicted
    return chosen, predicted[list(chosen)]


def score_clip(ref: ClipRef, predicted: np.ndarray, mode: revos.Mode = "clean") -> dict[str, float]:
    """Scores of one item in [0, 1], by name. Raises BadSample where its ground truth cannot be read."""
    frames, predicted = annotated(ref, predicted)
    objects = decode_masks(ref.masks, frames, ref.sample_id).astype(np.uint8)
    if ref.dataset != "revos" or ref.foreground is None:
        return mevis.score_expression(objects, predicted)._asdict()
    foreground = decode_masks(ref.foreground, frames, ref.sample_id)[0].astype(np.uint8)
    return revos.score_expression(objects, predicted.astype(np.uint8), foreground, mode)._asdict()


def missing(reader: Reader) -> dict[str, float]:
    """The scores of an item without any prediction."""
    return (revos.MISSING if rules(reader) == "revos" else mevis.MISSING)._asdict()


def score_position(reader: Reader, root: str, mode: revos.Mode, position: int) -> Row:
    """One expression from its PNGs. Raises InputError naming what is wrong."""
    ref = _open(reader, position)
    type_id = int(ref.extra.get("type_id") or 0)
    predicted = predictions.read(root, ref.extra["video"], ref.extra["exp_id"], ref.frames.names)
    if predicted is None:
        return Row(ref.sample_id, type_id, missing(reader), True)
    try:
        return Row(ref.sample_id, type_id, score_clip(ref, predicted, mode), False)
    except BadSample as error:
        raise InputError(f"the ground truth of {error}") from error
    except InputError as error:
        raise InputError(f"{predictions.folder(root, ref.extra['video'], ref.extra['exp_id'])}: {error}") from error


def table(rules: str, rows: Iterable[Row]) -> dict[str, Any]:
    """The benchmark's table, in percent, and how many expressions had no prediction."""
    rows = list(rows)
    if rules == "revos":
        out = dict(revos.aggregate((row.type_id, revos.Scores(**row.scores)) for row in rows))
    else:
        out = dict(mevis.aggregate(mevis.Scores(**row.scores) for row in rows))
    return {**out, "missing": sum(row.missing for row in rows)}


def score_refavs(reader: Reader, root: str, batch_videos: int = refavs.BATCH_VIDEOS) -> dict[str, Any]:
    """Ref-AVS J, F, S of `<root>/<uid>/fid_<fid>/0000t.png`, in batches of the reader's order, with DAVIS J and F.

    A uid that occurs again has "#2", "#3" appended, as in the reader's ids. A missing folder is an error: on the
    null split it would count as the best prediction.
    """
    davis_rows: list[mevis.Scores] = []

    def videos() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for position in range(len(reader)):
            ref = _open(reader, position)
            uid, fid = ref.sample_id.split("/", 2)[2], f"fid_{ref.extra['fid']}"
            pred = predictions.read(root, uid, fid, ref.frames.names)
            if pred is None:
                raise InputError(
                    f"{predictions.folder(root, uid, fid)} is missing; predict an empty mask as a black PNG"
                )
            try:
                objects = decode_masks(ref.masks, range(len(ref.frames)), ref.sample_id)
            except BadSample as error:
                raise InputError(f"the ground truth of {error}") from error
            if objects.shape[-2:] == pred.shape[-2:]:
                davis_rows.append(mevis.score_expression(objects, pred))
            yield refavs.binary_logits(refavs.resize_mask(pred)), refavs.resize_mask(objects.any(0))

    out = dict(refavs.aggregate(videos(), batch_videos))
    if len(davis_rows) == len(reader):
        out["davis"] = mevis.aggregate(davis_rows)
    return out


def score_refdavis_unsupervised(reader: Reader, dataset_root: str, root: str) -> dict[str, Any]:
    """Ref-DAVIS17 by the DAVIS unsupervised protocol: one submission per annotator, its objects' masks merged.

    Every expression needs its folder of predictions: a missing one raises InputError.
    """
    videos: dict[str, dict[int, ClipRef]] = {}
    for position in range(len(reader)):
        ref = reader[position]
        videos.setdefault(ref.extra["video"], {})[int(ref.extra["exp_id"])] = ref
    submissions: list[list] = [[] for _ in refdavis.ANNOTATORS]
    for video, refs in videos.items():
        names = next(iter(refs.values())).frames.names
        source = data_refdavis.annotation(dataset_root, video, names)
        try:
            annotation = np.stack([decode_label_map(paths.read_bytes(path)) for path in source.paths])
        except (OSError, ValueError) as error:
            raise InputError(f"the ground truth of {video}: {error}") from error
        for submission, numbers in zip(submissions, refdavis.submission_expressions(len(refs))):
            predicted = [predictions.read(root, video, str(number), names) for number in numbers]
            if missing := [number for number, pred in zip(numbers, predicted) if pred is None]:
                raise InputError(f"{predictions.folder(root, video, str(missing[0]))} is missing")
            labels = refdavis.label_map((np.stack(predicted) > 0).astype(np.uint8))
            submission.append(refdavis.score_video(annotation, labels, video))
    return dict(refdavis.aggregate_unsupervised(submissions))
