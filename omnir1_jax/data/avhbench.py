"""AVHBench: does a model hear what it only sees, or see what it only hears? Answers Yes or No.

One json list of {video_id, task, text, label} (at the root) and `<video_id>.mp4`, at the root or in `videos/`.
Besides the three tasks judged by Yes and No there is captioning, left out unless asked for.
"""

import functools
from typing import Any

from omnir1_jax.data import metadata, qa
from omnir1_jax.data.reader import TableReader, check_split
from omnir1_jax.data.refs import ClipRef, VideoAudio, VideoFile
from omnir1_jax.errors import InputError

JUDGE_TASKS = ("Audio-driven Video Hallucination", "Video-driven Audio Hallucination", "AV Matching")
TABLES = ("QA.json", "qa.json", "data.json", "AVHBench.json", "avhbench.json", "test.json")
FOLDERS = ("", "videos/", "video/", "data/")


def open(root: str, split: str = "test", captioning: bool = False) -> TableReader:
    """`extra`: options ("Yes", "No"), answer, answer_index (0 is Yes), task, video_id; for captioning the reference
    text as answer and no options. Raises `InputError` naming what is missing or wrong.
    """
    check_split("avhbench", split, ("test",))
    path = metadata.find(root, TABLES, "avhbench")
    rows, left_out = [], 0
    for number, row in enumerate(metadata.load_rows(path)):
        where = f"{path} row {number}"
        record = {key: metadata.get(row, key, str, where) for key in ("task", "text", "label")}
        record |= {"video_id": str(metadata.get(row, "video_id", (str, int), where)), "where": where}
        if judged(record["task"]):
            label = record["label"].strip().rstrip(".").capitalize()
            if label not in ("Yes", "No"):
                raise InputError(f"{where}.label: expected Yes or No, found {record['label'][:40]!r}")
            record |= {"answer": label, "options": ("Yes", "No"), "answer_index": int(label == "No")}
        elif captioning:
            record |= {"answer": record["label"], "options": (), "answer_index": None}
        else:
            left_out += 1
            continue
        rows.append((str(number), record))
    return qa.reader("avhbench", split, path, rows, functools.partial(_media, root), functools.partial(_clip, root))


def judged(task: str) -> bool:
    return task.replace("-", " ").lower() in {known.replace("-", " ").lower() for known in JUDGE_TASKS}


def _media(root: str, row: dict[str, Any]) -> str:
    return qa.media_file(root, [f"{folder}{row['video_id']}.mp4" for folder in FOLDERS], row["where"])


def _clip(root: str, sample_id: str, row: dict[str, Any]) -> ClipRef:
    video = _media(root, row)
    labels = {key: row[key] for key in ("task", "video_id")}
    values = (row["options"], row["answer"], row["answer_index"])
    return qa.clip("avhbench", sample_id, row["text"], VideoFile(video), VideoAudio(video), *values, **labels)
