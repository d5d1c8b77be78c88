"""OmniBench: a question about one image and one sound, four options.

A table (`*.jsonl`, `*.json` or `*.parquet`, at the root or in `dataset/`) of index, task type, audio type (speech,
sound event, music), question, options, answer (an option in full), audio_path, image_path; the media lie in
`mm_data/audio/` and `mm_data/image/`.
"""

import functools
from typing import Any

from omnir1_jax.data import metadata, paths, qa
from omnir1_jax.data.reader import TableReader, check_split
from omnir1_jax.data.refs import AudioFile, ClipRef, ImageFiles
from omnir1_jax.errors import InputError

AUDIO_TYPES = ("speech", "sound event", "music")
COLUMNS = ("index", "task type", "audio type", "question", "options", "answer", "audio_path", "image_path")


def open(root: str, split: str = "test") -> TableReader:
    """`extra`: options, answer, answer_index, index, task_type, audio_type. Raises `InputError`."""
    check_split("omnibench", split, ("test",))
    metadata.require_root(root)
    path = table(root)
    rows = []
    for number, row in enumerate(metadata.load_rows(path, COLUMNS), 1):
        where = f"{path} row {number}"
        index = metadata.get(row, "index", (int, str), where)
        for key in ("task type", "audio type", "question", "answer", "audio_path", "image_path"):
            metadata.get(row, key, str, where)
        if row["audio type"].strip().lower() not in AUDIO_TYPES:
            raise InputError(f"{where}['audio type']: expected one of {', '.join(AUDIO_TYPES)}")
        options = qa.get_options(row, "options", where)
        checked = {key: row[key] for key in COLUMNS} | {"options": options, "where": where}
        checked["answer_index"] = qa.answer_index(options, row["answer"], where)
        rows.append((str(index), checked))
    return qa.reader("omnibench", split, path, rows, functools.partial(_media, root), functools.partial(_clip, root))


def table(root: str) -> str:
    """The one table of questions. Raises `InputError`."""
    endings = ("jsonl", "json", "parquet")
    if files := paths.matching(root, *(f"{folder}*.{e}" for folder in ("", "dataset/", "data/") for e in endings)):
        return files[0]
    raise InputError(f"omnibench: no table of questions (*.jsonl, *.json, *.parquet) in {root}")


def _media(root: str, row: dict[str, Any]) -> tuple[str, str]:
    image = qa.media_file(root, [f"mm_data/image/{row['image_path']}"], row["where"])
    return image, qa.media_file(root, [f"mm_data/audio/{row['audio_path']}"], row["where"])


def _clip(root: str, sample_id: str, row: dict[str, Any]) -> ClipRef:
    image, sound = _media(root, row)
    return qa.clip(
        "omnibench",
        sample_id,
        row["question"],
        ImageFiles((image,), ("0",)),
        AudioFile(sound),
        row["options"],
        row["answer"],
        row["answer_index"],
        index=row["index"],
        task_type=row["task type"],
        audio_type=row["audio type"].strip().lower(),
    )
