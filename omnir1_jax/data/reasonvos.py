"""ReasonVOS: questions about videos of BURST, VIPSeg, MOSE and MeViS whose answer is an object. Evaluation only.

`meta_expressions.json`: {"videos": {video: {"source", "is_sent", "expressions": {id: {"exp_text", "obj_id"}}}}},
`JPEGImages/<video>/<frame>.jpg`, `Annotations/<source>_<video>_<obj_id>/<frame>.png` (foreground is what is not 0).
Frames are those on disk, as the published inference takes them; only those with an annotation are scored.
(showlab/VideoLISA: BENCHMARK.md, benchmark_check.py, evaluation/reason_vos)
"""

import functools
import os
from dataclasses import dataclass
from typing import Any

from omnir1_jax.data import metadata, paths, vos_json
from omnir1_jax.data.reader import TableReader, check_source, make_reader
from omnir1_jax.data.refs import ClipRef, ImageFiles, PngMasks
from omnir1_jax.errors import InputError


@dataclass(frozen=True)
class _Row:
    video: str
    exp_id: str  # folder of the prediction: the object's id, as the published script has it
    query: str
    masks: str  # folder within the root
    labels: tuple[tuple[str, Any], ...]


def open(root: str, split: str = "test") -> TableReader:
    """One item per expression. `extra`: video, exp_id, source, is_sent, obj_id, annotated (positions of scored frames).

    Raises `InputError` naming what is missing or wrong.
    """
    check_source("reasonvos", root, split, ("test",))
    path = paths.existing(root, "meta_expressions.json", "reasonvos")
    videos = metadata.get(metadata.load_json(path), "videos", dict, path)
    rows, missing = [], []
    for video, record in videos.items():
        location, used_ids = f"{path}: videos['{video}']", set()
        vos_json.check_name(video, location)
        source = metadata.get(record, "source", str, location)
        sent = bool(metadata.get(record, "is_sent", (bool, int), location))
        for key, expression in metadata.get(record, "expressions", dict, location).items():
            expression_location = f"{location}.expressions['{key}']"
            obj_id = str(metadata.get(expression, "obj_id", (int, str), expression_location))
            exp_id = obj_id if obj_id not in used_ids else f"{obj_id}_{key}"
            vos_json.check_name(exp_id, expression_location)
            used_ids.add(exp_id)
            # The checking script spells the source in small letters, the scoring one as in the file.
            names = dict.fromkeys(f"Annotations/{name}_{video}_{obj_id}" for name in (source.lower(), source))
            masks = next((name for name in names if paths.exists(f"{root}/{name}")), next(iter(names)))
            needed = (f"{root}/JPEGImages/{video}", f"{root}/{masks}")
            missing += [folder for folder in needed if not paths.exists(folder)]
            labels = (("source", source), ("is_sent", sent), ("obj_id", obj_id))
            text = metadata.get(expression, "exp_text", str, expression_location)
            rows.append((f"{video}/{exp_id}", video, _Row(video, exp_id, text, masks, labels)))
    if missing and not paths.is_remote(root):
        raise InputError(f"{path}: {len(missing)} folders of frames or masks; {paths.missing(missing[0])}")
    return make_reader("reasonvos", split, rows, functools.partial(_clip, root), path)


def _clip(root: str, sample_id: str, row: _Row) -> ClipRef:
    frames = paths.matching(f"{root}/JPEGImages/{row.video}", "*.jpg")
    if not frames:
        raise InputError(f"{root}/JPEGImages/{row.video} holds no frames (*.jpg)")
    names = tuple(os.path.basename(path).removesuffix(".jpg") for path in frames)
    files = paths.matching(f"{root}/{row.masks}", "*.png")
    pngs = {os.path.basename(path).removesuffix(".png"): path for path in files}
    if stray := sorted(pngs.keys() - set(names)):
        raise InputError(f"{root}/{row.masks}/{stray[0]}.png belongs to no frame of JPEGImages/{row.video}")
    annotated = tuple(frame for frame, name in enumerate(names) if name in pngs)
    if not annotated:
        raise InputError(f"{root}/{row.masks} holds no masks (*.png)")
    masks = PngMasks(tuple(pngs.get(name) for name in names), (None,), size_from=frames[0])
    extra = {"video": row.video, "exp_id": row.exp_id, "annotated": annotated, **dict(row.labels)}
    return ClipRef("reasonvos", sample_id, "vos", row.query, ImageFiles(tuple(frames), names), masks=masks, extra=extra)
