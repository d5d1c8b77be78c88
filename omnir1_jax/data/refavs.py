"""Ref-AVS Bench: one object of a sounding scene, named by what is seen and heard. Ten frames and ten seconds per clip.

`metadata.csv` (vid, uid, split, fid, exp), `media/<dir>/frames/{0..9}.jpg`, `media/<dir>/audio.wav`,
`gt_mask/<dir>/fid_<fid>/0000{0..9}.png` with foreground = gray > 0. The directory is `uid` without its last two
parts, not `vid`: rows without a target ("null", fid 0) have directories of their own.
"""

import functools
from typing import Any

from omnir1_jax.data import metadata, paths
from omnir1_jax.data.reader import TableReader, check_source, make_reader
from omnir1_jax.data.refs import AudioFile, ClipRef, ImageFiles, PngMasks
from omnir1_jax.data.vos_json import check_name
from omnir1_jax.errors import InputError

SPLITS = ("train", "val", "test_s", "test_u", "test_n")
COLUMNS = ("vid", "uid", "split", "fid", "exp")
FRAMES = 10
JUNK = "[Error]"


def directory(uid: str) -> str:
    """The directory of a row's media and masks."""
    return uid.rsplit("_", 2)[0]


def open(root: str, split: str = "train") -> TableReader:
    """One item per row, including rows without a target. `extra`: vid, uid, fid, exp, dir, null (bool).

    Rows of split TODO and rows whose expression is an error message are left out, and `notes` says how many.
    Raises `InputError` naming what is missing or wrong.
    """
    check_source("refavs", root, split, SPLITS)
    path = paths.existing(root, "metadata.csv", "refavs")
    rows, junk, todo, missing = [], 0, 0, set()
    folder_exists: dict[str, bool] = {}
    for number, row in enumerate(metadata.load_rows(path), 1):
        location = f"{path} row {number}"
        metadata.get_texts(row, COLUMNS, location)
        todo += row["split"] == "TODO"
        if row["split"] not in (*SPLITS, "TODO"):
            raise InputError(f"{location}.split: expected one of {', '.join(SPLITS)}, found {row['split'][:40]!r}")
        if row["split"] != split:
            continue
        if row["exp"].startswith(JUNK) or not row["exp"].strip():
            junk += 1
            continue
        if not row["fid"].isdecimal():
            raise InputError(f"{location}.fid: expected a whole number, found {row['fid'][:40]!r}")
        if row["uid"].count("_") < 2:
            raise InputError(f"{location}.uid: expected <directory>_<part>_<part>, found {row['uid'][:60]!r}")
        check_name(directory(row["uid"]), f"{location}.uid")
        folders = [f"media/{directory(row['uid'])}"]
        if not is_null(row):
            folders.append(f"gt_mask/{directory(row['uid'])}/fid_{row['fid']}")
        for folder in folders:
            if folder not in folder_exists:
                folder_exists[folder] = paths.is_remote(root) or paths.exists(paths.inside(root, folder, location))
            if not folder_exists[folder]:
                missing.add(folder)
        rows.append((row["uid"], directory(row["uid"]), {column: row[column] for column in COLUMNS}))
    if missing:
        raise InputError(f"refavs: {len(missing)} directories named in {path} are missing: {root}/{min(missing)}, ...")
    notes = tuple(f"{n} rows left out: {why}" for n, why in ((todo, "split TODO"), (junk, "no expression")) if n)
    return make_reader("refavs", split, rows, functools.partial(_clip, root), path, notes)


def is_null(row: dict[str, Any]) -> bool:
    """Whether the expression names nothing in the clip."""
    return int(row["fid"]) == 0


def _clip(root: str, sample_id: str, row: dict[str, Any]) -> ClipRef:
    folder = directory(row["uid"])
    names = tuple(f"{t:05d}" for t in range(FRAMES))
    frames = paths.files(root, f"media/{folder}/frames", [f"{t}.jpg" for t in range(FRAMES)], row["uid"])
    (audio,) = paths.files(root, f"media/{folder}", ["audio.wav"], row["uid"])
    target = f"gt_mask/{folder}/fid_{row['fid']}"
    if is_null(row) and not paths.exists(paths.inside(root, target, row["uid"])):
        masks = PngMasks((None,) * FRAMES, (None,), size_from=frames[0])
    else:
        masks = PngMasks(paths.files(root, target, [f"{n}.png" for n in names], row["uid"]), (None,))
    return ClipRef(
        dataset="refavs",
        sample_id=sample_id,
        family="refavs",
        query=row["exp"].strip(),
        frames=ImageFiles(frames, names, fps=1.0),
        audio=AudioFile(audio),
        masks=masks,
        extra={**row, "fid": int(row["fid"]), "dir": folder, "null": is_null(row)},
    )
