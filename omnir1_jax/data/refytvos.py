"""Ref-YouTube-VOS: `meta_expressions/{train,valid,test}/meta_expressions.json`, `<split>/JPEGImages/<video>/<f>.jpg`,
`train/Annotations/<video>/<f>.png` (palette index = obj_id) and `train/meta.json` (categories).

The masks of valid are kept by the server; its file also lists the videos of test, which are taken out.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omnir1_jax.data import metadata, paths, vos_json
from omnir1_jax.data.reader import TableReader, check_source, make_reader
from omnir1_jax.data.refs import ClipRef, PngMasks
from omnir1_jax.errors import InputError

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class _Tree:
    folder: str  # holds JPEGImages and, in train, Annotations
    labelled: bool
    videos: Mapping[str, Any] = field(repr=False)
    categories: Mapping[str, Any] = field(repr=False)


def open(root: str, split: str = "train") -> TableReader:
    """One item per expression. `extra`: video, exp_id and, in train, obj_id (a number) and category (or None).

    Raises `InputError` naming what is missing or wrong.
    """
    check_source("refytvos", root, split, SPLITS)
    path = _meta(root, split)
    folder = split
    if split == "test" and not paths.exists(f"{root}/test/JPEGImages"):
        folder = "valid"  # the frames of both come in one archive
    folder = paths.existing(root, folder, "refytvos")
    videos = vos_json.load_videos(path, folder, "JPEGImages", with_size=False, with_objects=False)
    if split == "valid":
        test_videos = metadata.get(metadata.load_json(_meta(root, "test")), "videos", dict, _meta(root, "test"))
        videos = {video: record for video, record in videos.items() if video not in test_videos}
    labelled = split == "train"
    categories: dict[str, Any] = {}
    if labelled:
        _check_objects(path, videos)
        if paths.exists(f"{folder}/meta.json"):
            location = paths.inside(folder, "meta.json", "refytvos")
            categories = metadata.get(metadata.load_json(location), "videos", dict, location)
        if missing := _missing_annotations(folder, videos):
            raise InputError(f"{folder}/Annotations: {len(missing)} videos are missing; the first is '{missing[0]}'")
    tree = _Tree(folder, labelled, videos, categories)
    items = vos_json.expressions(videos, keep_empty=True)
    return make_reader("refytvos", split, items, functools.partial(_clip, tree), path)


def _meta(root: str, split: str) -> str:
    return paths.existing(root, f"meta_expressions/{split}/meta_expressions.json", "refytvos")


def _check_objects(path: str, videos: Mapping[str, Any]) -> None:
    for video, record in videos.items():
        for exp_id, expression in record["expressions"].items():
            location = f"{path}: videos['{video}'].expressions['{exp_id}']"
            text = metadata.get(expression, "obj_id", str, location)
            if not text.isdecimal() or not 0 < int(text) < 255:
                raise InputError(f"{location}.obj_id: expected a number from 1 to 254 as text, found {text[:40]!r}")


def _missing_annotations(folder: str, videos: Mapping[str, Any]) -> list[str]:
    if paths.is_remote(folder):
        return []
    return [v for v in videos if not paths.exists(paths.inside(folder, f"Annotations/{v}", "refytvos"))]


def _clip(tree: _Tree, sample_id: str, row: tuple[str, str]) -> ClipRef:
    video, exp_id = row
    record = tree.videos[video]
    frames = vos_json.images(tree.folder, "JPEGImages", video, record["frames"])
    extra: dict[str, Any] = {"video": video, "exp_id": exp_id}
    masks = None
    if tree.labelled:
        obj_id = record["expressions"][exp_id]["obj_id"]
        pngs = paths.files(tree.folder, f"Annotations/{video}", [f"{name}.png" for name in frames.names], video)
        masks = PngMasks(pngs, (int(obj_id),))
        extra |= {"obj_id": int(obj_id), "category": _category(tree.categories, video, obj_id)}
    return ClipRef(
        dataset="refytvos",
        sample_id=sample_id,
        family="vos",
        query=record["expressions"][exp_id]["exp"],
        frames=frames,
        masks=masks,
        extra=extra,
    )


def _category(categories: Mapping[str, Any], video: str, obj_id: str) -> str | None:
    location = f"meta.json: videos['{video}']"
    if video not in categories:
        return None
    objects = metadata.get(categories[video], "objects", dict, location)
    return metadata.get(objects[obj_id], "category", str, location) if obj_id in objects else None
