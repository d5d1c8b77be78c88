"""Video-MME: questions about videos with their sound, four options ("A. ..."), the answer a letter.

A table (`*.parquet`, `*.json` or `*.jsonl`, at the root or in `videomme/`) of video_id, duration (short, medium,
long), domain, sub_category, videoID, question_id, task_type, question, options, answer; the videos are
`<videoID>.mp4` at the root, in `data/` or in `videos/`.
"""

import functools
from typing import Any

from omnir1_jax.data import metadata, paths, qa
from omnir1_jax.data.reader import TableReader, check_split
from omnir1_jax.data.refs import ClipRef, VideoAudio, VideoFile
from omnir1_jax.errors import InputError

DURATIONS = ("short", "medium", "long")
LABELS = ("duration", "domain", "sub_category", "task_type", "question_id", "video_id")
COLUMNS = (*LABELS, "videoID", "question", "options", "answer")
FOLDERS = ("", "data/", "videos/", "video/")


def open(root: str, split: str = "test") -> TableReader:
    """`extra`: options, answer (a letter), answer_index, and the columns of `LABELS`. Raises `InputError`."""
    check_split("videomme", split, ("test",))
    metadata.require_root(root)
    path = _table(root)
    rows = []
    for number, row in enumerate(metadata.load_rows(path, COLUMNS), 1):
        where = f"{path} row {number}"
        for key in COLUMNS:
            if key != "options":
                metadata.get(row, key, str, where)
        if row["duration"] not in DURATIONS:
            raise InputError(f"{where}.duration: expected one of {', '.join(DURATIONS)}, found {row['duration']!r}")
        options = qa.get_options(row, "options", where)
        checked = {key: row[key] for key in COLUMNS} | {"options": options, "where": where}
        checked["answer_index"] = qa.letter_index(options, row["answer"], where)
        rows.append((row["question_id"], checked))
    return qa.reader("videomme", split, path, rows, functools.partial(_media, root), functools.partial(_clip, root))


def _table(root: str) -> str:
    endings = ("parquet", "json", "jsonl")
    if files := paths.matching(root, *(f"{folder}*.{e}" for folder in ("", "videomme/") for e in endings)):
        return files[0]
    raise InputError(f"videomme: no table of questions (*.parquet, *.json, *.jsonl) in {root}")


def _media(root: str, row: dict[str, Any]) -> str:
    return qa.media_file(root, [f"{folder}{row['videoID']}.mp4" for folder in FOLDERS], row["where"])


def _clip(root: str, sample_id: str, row: dict[str, Any]) -> ClipRef:
    video = _media(root, row)
    return qa.clip(
        "videomme",
        sample_id,
        row["question"],
        VideoFile(video),
        VideoAudio(video, required=False),
        row["options"],
        row["answer"],
        row["answer_index"],
        **{key: row[key] for key in LABELS},
    )
