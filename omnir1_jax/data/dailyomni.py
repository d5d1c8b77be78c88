"""Daily-Omni: questions about videos of daily life that take both sight and sound; four options, the answer a letter.

`qa.json` (or `QA_all.json`), a list of {Question, Choice, Answer, video_id, Type, video_category, video_duration};
`Videos/<video_id>/<video_id>_video.mp4`, with the sound in its track or beside it as `<video_id>_audio.wav`.
(Lliar-liar/Daily-Omni: test_model/Qwen2.5-Omni/testmodel.py)
"""

import functools
from typing import Any

from omnir1_jax.data import metadata, paths, qa
from omnir1_jax.data.reader import TableReader, check_split
from omnir1_jax.data.refs import AudioFile, ClipRef, VideoAudio, VideoFile

TABLES = ("qa.json", "QA_all.json")
FOLDERS = ("Videos/", "")
LABELS = {"Type": "task_type", "video_category": "video_category", "video_duration": "duration"}


def open(root: str, split: str = "test") -> TableReader:
    """`extra`: options, answer (a letter), answer_index, video_id, task_type, video_category, duration ("30s", "60s").

    Raises `InputError` naming what is missing or wrong.
    """
    check_split("dailyomni", split, ("test",))
    path = metadata.find(root, TABLES, "dailyomni")
    rows = []
    for number, row in enumerate(metadata.load_rows(path)):
        where = f"{path} row {number}"
        texts = {key: metadata.get(row, key, str, where) for key in ("Question", "Answer", "video_id", *LABELS)}
        options = qa.get_options(row, "Choice", where)
        index = qa.letter_index(options, texts["Answer"].upper(), where)
        rows.append((str(number), texts | {"options": options, "answer_index": index, "where": where}))
    return qa.reader("dailyomni", split, path, rows, functools.partial(_media, root), functools.partial(_clip, root))


def _media(root: str, row: dict[str, Any]) -> str:
    name = row["video_id"]
    return qa.media_file(root, [f"{folder}{name}/{name}_video.mp4" for folder in FOLDERS], row["where"])


def _clip(root: str, sample_id: str, row: dict[str, Any]) -> ClipRef:
    video = _media(root, row)
    beside = video.removesuffix("_video.mp4") + "_audio.wav"
    sound = AudioFile(beside) if paths.exists(beside) else VideoAudio(video, required=False)
    labels = {name: row[key] for key, name in LABELS.items()} | {"video_id": row["video_id"]}
    values = (row["options"], row["Answer"].strip().upper(), row["answer_index"])
    return qa.clip("dailyomni", sample_id, row["Question"], VideoFile(video), sound, *values, **labels)
