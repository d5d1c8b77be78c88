"""Question answering as Video-R1 writes it: a json list (or jsonl) beside folders of videos and images.

The published data has two of them side by side: split "train" reads `Video-R1-260k.json` (what RL trains on), split
"cot" `Video-R1-COT-165k.json` (what its supervised start trains on). Any other file is named by the option `file`.

Keys of an item: `problem` (the question), `solution` ("<answer>B</answer>" or the bare answer), `path` (of the media,
"./folder/file.mp4", within the root), `data_type` (video or image), `problem_type` (multiple choice, numerical, OCR,
free-form, regression, ...), and where there is a choice `options`; `problem_id` and `data_source` if known.
"""

import functools
import os
from typing import Any

from omnir1_jax.data import metadata, paths, qa
from omnir1_jax.data.reader import TableReader, check_split
from omnir1_jax.data.refs import ClipRef, ImageFiles, VideoAudio, VideoFile
from omnir1_jax.errors import InputError
from omnir1_jax.text import tags

SPLITS = ("train", "cot", "test")
PUBLISHED = {"train": "Video-R1-260k.json", "cot": "Video-R1-COT-165k.json"}


def open(root: str, split: str = "train", file: str = "") -> TableReader:
    """`extra`: options, answer, answer_index (None unless a letter), problem_type, data_source, data_type.

    The table is `file` where it is given, else `<split>.json`, `<split>.jsonl`, the published file of the split, or
    the only json at the root. Raises `InputError`.
    """
    check_split("videor1", split, SPLITS)
    metadata.require_root(root)
    path = paths.existing(root, file, "videor1.file") if file else _table(root, split)
    rows = []
    for number, row in enumerate(metadata.load_rows(path)):
        where = f"{path} row {number}"
        record = {key: metadata.get(row, key, str, where) for key in ("problem", "solution", "path", "data_type")}
        if record["data_type"] not in ("video", "image"):
            raise InputError(f"{where}.data_type: expected video or image, found {record['data_type'][:40]!r}")
        answer = tags.between(record["solution"], "answer")
        answer = (record["solution"] if answer is None else answer).strip()
        options = tuple(metadata.get_list(row, "options", str, where)) if row.get("options") else ()
        index = qa.letter_index(options, answer, where) if options and len(answer) == 1 else None
        record |= {"answer": answer, "options": options, "answer_index": index, "where": where}
        record["problem_type"] = metadata.get(row, "problem_type", str, where) if "problem_type" in row else ""
        record["data_source"] = metadata.get(row, "data_source", str, where) if "data_source" in row else ""
        rows.append((str(row.get("problem_id", number)), record))
    return qa.reader("videor1", split, path, rows, functools.partial(_media, root), functools.partial(_clip, root))


def _table(root: str, split: str) -> str:
    for name in (f"{split}.json", f"{split}.jsonl", PUBLISHED.get(split)):
        if name and paths.exists(f"{root}/{name}"):
            return paths.inside(root, name, "videor1")
    files = sorted(paths.matching(root, "*.json", "*.jsonl"))
    if not files:
        raise InputError(f"videor1: {root} holds no json or jsonl file of questions")
    if len(files) > 1:
        names = [os.path.basename(path) for path in files]
        advice = f"choose one in the config: datasets(videor1=dict(..., file={names[0]!r}))"
        raise InputError(f"videor1: {root} holds {', '.join(names)}, none of split '{split}'; {advice}")
    return files[0]


def _media(root: str, row: dict[str, Any]) -> str:
    return qa.media_file(root, [row["path"].removeprefix("./")], row["where"])


def _clip(root: str, sample_id: str, row: dict[str, Any]) -> ClipRef:
    path = _media(root, row)
    video = row["data_type"] == "video"
    frames = VideoFile(path) if video else ImageFiles((path,), ("0",))
    labels = {key: row[key] for key in ("problem_type", "data_source", "data_type")}
    values = (row["options"], row["answer"], row["answer_index"])
    audio = VideoAudio(path, required=False) if video else None
    return qa.clip("videor1", sample_id, row["problem"], frames, audio, *values, **labels)
