"""Where an item's prediction is stored, its scores, and the benchmark's table."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from omnir1_jax import tasks
from omnir1_jax.data.masks import decode_masks
from omnir1_jax.data.reader import Subset
from omnir1_jax.data.refs import BadSample, ClipRef, Reader
from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import mevis, predictions, refavs, refdavis, revos, score_answers, score_masks

Line = Mapping[str, Any]
_MASKS = {name: (name,) for name in ("J&F", "J", "F")}
# The columns of the paper's tables, by their keys in a benchmark's table.
PAPER: dict[str, dict[str, tuple[str, ...]]] = {
    "revos": {f"{kind} {name}": (kind, name) for kind in ("referring", "reasoning", "overall") for name in _MASKS},
    **dict.fromkeys(("mevis", "refavs", "refytvos", "refdavis", "reasonvos"), _MASKS),
    "omnibench": {"average": ("accuracy",)},
    "dailyomni": {"average": ("accuracy",)},
    "videomme": {"general": ("accuracy",), "short": ("duration", "short", "accuracy")},
    "mvbench": {"average": ("accuracy",)},
    "avhbench": {"judge": ("all", "accuracy")},
}


def png_folder(ref: ClipRef) -> tuple[str, str]:
    """(video, expression): the folder of an item's PNGs, as its benchmark requires it."""
    label = ref.sample_id.split("/", 2)[2]
    if ref.family == "refavs":
        return label, f"fid_{ref.extra['fid']}"
    if "video" in ref.extra and "exp_id" in ref.extra:
        return ref.extra["video"], ref.extra["exp_id"]
    video, _, expression = label.rpartition("/")
    return video, expression


def names(ref: ClipRef, count: int) -> tuple[str, ...]:
    """Frame names: the dataset's own, or numbers."""
    frame_names = getattr(ref.frames, "names", None)
    return tuple(frame_names) if frame_names else tuple(f"{t:05d}" for t in range(count))


def empty(ref: ClipRef) -> Bool[np.ndarray, "t h w"] | None:
    """The empty prediction for an item whose media cannot be read; None if its size is not known either."""
    try:
        if ref.masks is not None:
            return np.zeros(decode_masks(ref.masks, range(len(ref.frames)), ref.sample_id).shape[1:], bool)
    except (BadSample, TypeError):
        pass  # the masks are unreadable too, or a video's length is unknown: the dataset may give the size elsewhere
    if ref.size is None or not hasattr(ref.frames, "names"):
        return None
    return np.zeros((len(ref.frames), *ref.size), bool)


def score(ref: ClipRef, predicted: Bool[np.ndarray, "t h w"]) -> dict[str, float] | None:
    """Scores of one item in [0, 1], by name; None where the masks are kept by a server or cannot be read."""
    if ref.masks is None:
        return None
    try:
        return score_masks.score_clip(ref, predicted)
    except BadSample:
        return None


def official(
    ref: ClipRef, predicted: Bool[np.ndarray, "t h w"], clean: dict[str, float] | None
) -> dict[str, dict[str, float]]:
    """{"official": scores of the published script}, if they differ from the `clean` ones of `score`; else {}."""
    if clean is None or ref.dataset != "revos" or ref.foreground is None:
        return {}
    objects = decode_masks(ref.masks, range(len(predicted)), ref.sample_id).astype(np.uint8)
    foreground = decode_masks(ref.foreground, range(len(predicted)), ref.sample_id)[0].astype(np.uint8)
    return {"official": revos.as_published(revos.Scores(**clean), objects, predicted, foreground)._asdict()}


def two_scorings(reader: Reader) -> bool:
    """Whether the published script of the benchmark scores differently than `clean`."""
    return score_masks.rules(reader) == "revos" or reader.name in score_answers.OFFICIAL


def table(
    reader: Reader,
    task: tasks.Task,
    lines: Iterable[Line],
    root: str,
    dataset_root: str,
    scoring: score_answers.Scoring = "clean",
) -> dict[str, Any]:
    """The benchmark's table in percent, from the lines of its items (and, for Ref-AVS, their PNGs).

    Items whose ground truth cannot be read, or is kept by a server, have no score and are left out of the means.

    Args:
      scoring: "official": as the published script counts, see `two_scorings`.
    """
    lines = list(lines)
    if not task.grounds:
        answered = Subset(reader, tuple(line["position"] for line in lines))
        completions = {line["sample_id"]: line["completion"] for line in lines}
        return score_answers.score(answered, completions, scoring, task.metric)
    scored = [line for line in lines if line["scores"] is not None]
    if not scored or served(reader, lines):
        return {"unscored": len(lines)}
    if task.mask_rules == "refavs":
        subset = Subset(reader, tuple(line["position"] for line in scored if line["predicted"]))
        out = score_masks.score_refavs(subset, root) if len(subset) else {}
        percent = {key: 100 * value for key, value in out.items() if key in ("J", "F")}
        return {**out, **percent, "J&F": (percent["J"] + percent["F"]) / 2} if out else {"unscored": len(lines)}
    rows = [_row(reader, line, root, scoring) for line in scored]
    out = score_masks.table(score_masks.rules(reader), rows)
    if reader.name == "refdavis" and len(scored) == len(reader):
        out["unsupervised"] = _unsupervised(reader, root, dataset_root)
    return out


def blank(reader: Reader, task: tasks.Task, positions: Iterable[int], dataset_root: str) -> dict[str, Any]:
    """The table of items without any prediction; its entries are those of a table with answers."""
    lines: list[Line] = []
    unanswered = {"predicted": False, "scores": score_masks.missing(reader), "type_id": None, "completion": ""}
    for position in positions:
        line = {"position": position, **unanswered}
        try:
            ref = reader[position]
            line |= {"sample_id": ref.sample_id, "type_id": ref.extra.get("type_id")}
            line |= {} if ref.masks is not None or not task.grounds else {"scores": None}
        except BadSample as error:
            line["sample_id"] = error.sample_id
        lines.append(line)
    if task.mask_rules == "refavs" and any(line["scores"] is not None for line in lines):
        entries = {**refavs.aggregate(()), "davis": mevis.aggregate([mevis.MISSING])}
        return entries | dict.fromkeys(("J", "F", "S", "J&F"), 0.0)
    entries = table(reader, task, lines, "", dataset_root)
    if "unsupervised" in entries:
        one_pixel = np.zeros((1, 1))
        entries["unsupervised"] = refdavis.aggregate_unsupervised([[(one_pixel, one_pixel)]])
    return entries


def _row(reader: Reader, line: Line, root: str, scoring: score_answers.Scoring) -> score_masks.Row:
    values = line["scores"]
    if scoring == "official" and score_masks.rules(reader) == "revos" and line["predicted"]:
        if "official" not in line:  # a line of an older version: scored again from its PNGs
            return score_masks.score_position(reader, root, "compat", line["position"])
        values = line["official"]
    return score_masks.Row(line["sample_id"], int(line["type_id"] or 0), values, not line["predicted"])


def paper(benchmark: str, table: Mapping[str, Any]) -> dict[str, float]:
    """The paper's columns for this benchmark, those that the table has, in percent."""
    out = {}
    for name, keys in PAPER.get(benchmark, {}).items():
        value: Any = table
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            out[name] = value
    return out


def _unsupervised(reader: Reader, root: str, dataset_root: str) -> dict[str, Any]:
    try:
        return score_masks.score_refdavis_unsupervised(reader, dataset_root, root)
    except InputError as error:
        return {"unscored": str(error)}  # a copy without the label maps, or an item without a prediction


def served(reader: Reader, lines: Iterable[Line]) -> bool:
    """Whether a server keeps the ground truth of this split."""
    written = next((line["position"] for line in lines if line["predicted"]), None)
    return written is not None and reader[written].masks is None


def archive(reader: Reader, lines: Iterable[Line], root: str, target: str) -> dict[str, int]:
    """Writes the archive for a benchmark's server: how many PNGs are in it, how many items are not."""
    prefix = predictions.REFYTVOS_PREFIX if reader.name == "refytvos" else ""
    items = {png_folder(reader[line["position"]]) for line in lines if line["predicted"]}
    missing = sum(not line["predicted"] for line in lines)
    return {"pngs": predictions.write_zip(root, target, prefix, items), "missing": missing}
