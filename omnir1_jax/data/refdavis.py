"""Ref-DAVIS17 (valid): four expressions per object, number `object*4 + annotator`, for two evaluation protocols.

Frames are in `valid/JPEGImages/<video>` or, as DAVIS ships them, `JPEGImages/480p/<video>`; expressions in
`meta_expressions/valid/meta_expressions.json`. Masks, whichever is there:
- `mask_dict.json` (in `valid/` or at the root), for the protocol by expression. Its annotation ids are a running
  counter over the sorted videos and their *lexicographically* sorted expression ids ("10" before "2").
  Copies that hold the same as a pickle (`mask_dict.pkl`): see `unpickle_masks`.
- label maps in `Annotations_unsupervised/480p/<video>` or `valid/Annotations/<video>`: object n has value n + 1.
  The unsupervised protocol compares whole maps (`annotation`), in which 255 is void and ignored.
"""

import functools
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omnir1_jax.data import metadata, paths, vos_json
from omnir1_jax.data.reader import TableReader, check_source, make_reader
from omnir1_jax.data.refs import ClipRef, PngMasks, RleMasks
from omnir1_jax.errors import InputError

ANNOTATORS = ("annot1-first", "annot1-full", "annot2-first", "annot2-full")
VOID = 255
FRAME_FOLDERS = ("valid/JPEGImages", "JPEGImages/480p", "JPEGImages")
MAP_FOLDERS = ("Annotations_unsupervised/480p", "valid/Annotations")
MASK_FILES = ("valid/mask_dict.json", "mask_dict.json")


@dataclass(frozen=True)
class _Tree:
    root: str
    frames: str
    maps: str | None  # folder of the label maps
    masks: metadata.JsonIndex | None
    videos: Mapping[str, Any] = field(repr=False)
    anno_ids: Mapping[tuple[str, str], int] = field(repr=False)


def open(root: str, split: str = "valid", masks: str = "auto") -> TableReader:
    """One item per expression. `extra`: video, exp_id, obj (from 0), annotator (0..3), anno_id.

    `masks`: "dict" (`mask_dict.json`), "maps" (label maps), or "auto": the first of these that is there.
    Raises `InputError` naming what is missing or wrong.
    """
    check_source("refdavis", root, split, ("valid",))
    if masks not in ("auto", "dict", "maps"):
        raise InputError(f"refdavis: masks is 'auto', 'dict' or 'maps', not {masks!r}")
    path = paths.existing(root, "meta_expressions/valid/meta_expressions.json", "refdavis")
    frames = _folder(root, FRAME_FOLDERS)
    videos = vos_json.load_videos(path, root, frames, with_size=False, with_objects=False)
    for video, record in videos.items():
        for exp_id in record["expressions"]:
            if not exp_id.isdecimal():
                raise InputError(f"{path}: videos['{video}'].expressions: {exp_id!r} is not a number")
    anno_ids = running_ids(videos)
    mask_file = next((name for name in MASK_FILES if paths.exists(f"{root}/{name}")), None)
    index = map_folder = None
    if masks != "maps" and mask_file:
        index = metadata.index_json(paths.inside(root, mask_file, "refdavis"))
        if missing := [n for n in anno_ids.values() if str(n) not in index]:
            raise InputError(f"{index.path}: {len(missing)} of {len(anno_ids)} ids are missing, first '{missing[0]}'")
    elif masks == "dict":
        raise InputError(f"refdavis: {root} holds none of {', '.join(MASK_FILES)}{_pickle_advice(root)}")
    else:
        map_folder = _folder(root, MAP_FOLDERS, (*MASK_FILES, *MAP_FOLDERS), _pickle_advice(root))
    tree = _Tree(root, frames, map_folder, index, videos, anno_ids)
    items = vos_json.expressions(videos, keep_empty=True)
    return make_reader("refdavis", split, items, functools.partial(_clip, tree), path)


def running_ids(videos: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    """Annotation id of every (video, expression id)."""
    order = [(video, exp_id) for video in sorted(videos) for exp_id in sorted(videos[video]["expressions"])]
    return {key: number for number, key in enumerate(order)}


def annotation(root: str, video: str, names: tuple[str, ...]) -> PngMasks:
    """The label maps of a whole video: its `paths` are what the unsupervised protocol reads, void 255 included."""
    folder = f"{_folder(root, MAP_FOLDERS)}/{video}"
    return PngMasks(paths.files(root, folder, [f"{n}.png" for n in names], video), (None,))


def _folder(root: str, candidates: tuple[str, ...], named: tuple[str, ...] = (), advice: str = "") -> str:
    """The first of the folders that exists. `named`, `advice`: what else would do, for the message."""
    for name in candidates:
        if paths.exists(paths.inside(root, name, "refdavis")):
            return name
    raise InputError(f"refdavis: {root} holds none of {', '.join(named or candidates)}{advice}")


def _pickle_advice(root: str) -> str:
    for name in MASK_FILES:
        source = name.replace(".json", ".pkl")
        if paths.exists(f"{root}/{source}"):
            command = shlex.join(
                ["python", "-m", "omnir1_jax.data.unpickle_masks", f"{root}/{source}", f"{root}/{name}"]
            )
            return f"; {source} is a pickle, which can run code of its own: if you trust it, convert it with: {command}"
    return ""


def _clip(tree: _Tree, sample_id: str, row: tuple[str, str]) -> ClipRef:
    video, exp_id = row
    record = tree.videos[video]
    names = record["frames"]
    frames = vos_json.images(tree.root, tree.frames, video, names)
    obj, annotator = divmod(int(exp_id), len(ANNOTATORS))
    anno_id = tree.anno_ids[row]
    if tree.masks is not None:
        location = f"{tree.masks.path}['{anno_id}']"
        track = vos_json.check_track(tree.masks.read(str(anno_id)), len(names), location)
        masks = RleMasks((track,), vos_json.track_size([track], frames))
    else:
        pngs = paths.files(tree.root, f"{tree.maps}/{video}", [f"{n}.png" for n in names], video)
        masks = PngMasks(pngs, (obj + 1,))
    return ClipRef(
        dataset="refdavis",
        sample_id=sample_id,
        family="vos",
        query=record["expressions"][exp_id]["exp"],
        frames=frames,
        masks=masks,
        extra={"video": video, "exp_id": exp_id, "obj": obj, "annotator": annotator, "anno_id": anno_id},
    )
