"""ReVOS: referring and reasoning expressions for video, masks as run lengths.

Two trees: the official one, `JPEGImages/<video>/<frame>.jpg`, and the copy that comes with Sa2VA, which has no
`JPEGImages` level. Beside the frames: `mask_dict.json`, `mask_dict_foreground.json` and
`meta_expressions_{train,valid}_.json`. A video's name holds slashes; frame names start anywhere and have gaps.
"""

import functools
import os

from omnir1_jax.data import metadata, paths, vos_json
from omnir1_jax.data.reader import TableReader, check_source, make_reader
from omnir1_jax.errors import InputError

SPLITS = ("train", "valid")


def open(root: str, split: str = "train", keep_empty: bool | None = None) -> TableReader:
    """One item per expression. `extra`: video, exp_id, obj_id, anno_id, type_id (0 referring, 1 reasoning, 2 none).

    `keep_empty`: also expressions without a target (no obj_id, or type 2); by default only outside train. The valid
    split also has `foreground`, which metric R needs. Raises `InputError` naming what is missing or wrong.
    """
    check_source("revos", root, split, SPLITS)
    frames_root = "JPEGImages" if paths.exists(f"{root}/JPEGImages") or os.path.islink(f"{root}/JPEGImages") else ""
    path = paths.existing(root, f"meta_expressions_{split}_.json", "revos")
    videos = vos_json.load_videos(path, root, frames_root, with_size=True, with_objects=True)
    for video, record in videos.items():
        for exp_id, expression in record["expressions"].items():
            location = f"{path}: videos['{video}'].expressions['{exp_id}']"
            if metadata.get(expression, "type_id", int, location) not in (0, 1, 2):
                raise InputError(f"{location}.type_id: expected 0, 1 or 2, found {expression['type_id']}")
    masks = metadata.index_json(paths.existing(root, "mask_dict.json", "revos"))
    vos_json.require_masks(masks, videos)
    foreground = None
    if split == "valid":
        foreground = metadata.index_json(paths.existing(root, "mask_dict_foreground.json", "revos"))
        if missing := [video for video in videos if video not in foreground]:
            raise InputError(f"{foreground.path}: the video '{missing[0]}' is missing ({len(missing)} in all)")
    context = vos_json.VosSplit("revos", root, frames_root, videos, masks, foreground)
    keep = split != "train" if keep_empty is None else keep_empty
    items = vos_json.expressions(videos, keep)
    return make_reader("revos", split, items, functools.partial(vos_json.clip, context), path)
