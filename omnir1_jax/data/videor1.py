"""Question answering as Video-R1 writes it: a json list (or jsonl) beside folders of videos and images.

The published data has two of them side by side: split "train" reads `Video-R1-260k.json` (what RL trains on), split
"cot" `Video-R1-COT-165k.json` (what its supervised start trains on). Any other file is named by the option `file`.

Keys of an item: `problem` (the question), `solution` ("<answer>B</answer>" or the bare answer), `path` (of the media,
"./folder/file.mp4", within the root), `data_type` (video or image), `problem_type` (multiple choice, numerical, OCR,
free-form, regression, ...), and where there is a choice `options`; `problem_id` and `data_source` if known.
"""

import os

from omnir1_jax.data import metadata, paths, qa
from omnir1_jax.data.reader import TableReader, check_source
from omnir1_jax.data.refs import ImageFiles, VideoAudio, VideoFile
from omnir1_jax.errors import InputError
from omnir1_jax.text import tags

LABELS = ("problem_type", "data_source", "data_type")
SPLITS = ("train", "cot", "test")
PUBLISHED = {"train": "Video-R1-260k.json", "cot": "Video-R1-COT-165k.json"}


def open(root: str, split: str = "train", file: str = "") -> TableReader:
    """`extra`: options, answer, answer_index (None unless a letter), problem_type, data_source, data_type.

    The table is `file` where it is given, else `<split>.json`, `<split>.jsonl`, the published file of the split, or
    the only json at the root. Raises `InputError`.
    """
    check_source("videor1", root, split, SPLITS)
    path = paths.existing(root, file, "videor1.file") if file else _table(root, split)
    questions = []
    for number, row in enumerate(metadata.load_rows(path)):
        location = f"{path} row {number}"
        texts = metadata.get_texts(row, ("problem", "solution", "path", "data_type"), location)
        if texts["data_type"] not in ("video", "image"):
            raise InputError(f"{location}.data_type: expected video or image, found {texts['data_type'][:40]!r}")
        answer = tags.between(texts["solution"], "answer")
        answer = (texts["solution"] if answer is None else answer).strip()
        options = tuple(metadata.get_list(row, "options", str, location)) if row.get("options") else ()
        index = qa.letter_index(options, answer, location) if options and len(answer) == 1 else None
        labels = {key: metadata.get(row, key, str, location) if key in row else "" for key in LABELS}
        media = ((texts["path"].removeprefix("./"),),)
        question = qa.Question(location, texts["problem"], media, options, answer, index, labels)
        questions.append((str(row.get("problem_id", number)), question))
    return qa.reader("videor1", split, path, root, questions, _sources)


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


def _sources(question: qa.Question, path: str) -> tuple[VideoFile | ImageFiles, VideoAudio | None]:
    if question.extra["data_type"] == "video":
        return qa.video_with_sound(question, path)
    return ImageFiles((path,), ("0",)), None
