"""MeViS: expressions about motion. `{train,valid_u,valid}/{JPEGImages/<video>/<frame>.jpg, meta_expressions.json}`,
and `mask_dict.json` in train and valid_u; valid's masks are kept by the server.
"""

import functools

from omnir1_jax.data import metadata, paths, vos_json
from omnir1_jax.data.reader import TableReader, check_source, make_reader

SPLITS = ("train", "valid_u", "valid")


def open(root: str, split: str = "train", keep_empty: bool | None = None) -> TableReader:
    """One item per expression. `extra`: video, exp_id and, but for valid, obj_id and anno_id.

    `keep_empty`: also expressions without a target; by default only outside train. Raises `InputError`.
    """
    check_source("mevis", root, split, SPLITS)
    folder = paths.existing(root, split, "mevis")
    labelled = split != "valid"
    path = paths.existing(folder, "meta_expressions.json", "mevis")
    videos = vos_json.load_videos(path, folder, "JPEGImages", with_size=False, with_objects=labelled)
    masks = None
    if labelled:
        masks = metadata.index_json(paths.existing(folder, "mask_dict.json", "mevis"))
        vos_json.require_masks(masks, videos)
    context = vos_json.VosSplit("mevis", folder, "JPEGImages", videos, masks)
    keep = split != "train" if keep_empty is None else keep_empty
    items = vos_json.expressions(videos, keep)
    return make_reader("mevis", split, items, functools.partial(vos_json.clip, context), path)
