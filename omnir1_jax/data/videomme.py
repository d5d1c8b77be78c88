"""Video-MME: questions about videos with their sound, four options ("A. ..."), the answer a letter.

A table (`*.parquet`, `*.json` or `*.jsonl`, at the root or in `videomme/`) of video_id, duration (short, medium,
long), domain, sub_category, videoID, question_id, task_type, question, options, answer; the videos are
`<videoID>.mp4` at the root, in `data/` or in `videos/`.
"""

from omnir1_jax.data import metadata, qa
from omnir1_jax.data.reader import TableReader, check_source
from omnir1_jax.errors import InputError

DURATIONS = ("short", "medium", "long")
LABELS = ("duration", "domain", "sub_category", "task_type", "question_id", "video_id")
COLUMNS = (*LABELS, "videoID", "question", "options", "answer")
FOLDERS = ("", "data/", "videos/", "video/")


def open(root: str, split: str = "test") -> TableReader:
    """`extra`: options, answer (a letter), answer_index, and the columns of `LABELS`. Raises `InputError`."""
    check_source("videomme", root, split, ("test",))
    path = qa.table("videomme", root, ("", "videomme/"), ("parquet", "json", "jsonl"))
    questions = []
    for number, row in enumerate(metadata.load_rows(path, COLUMNS), 1):
        location = f"{path} row {number}"
        texts = metadata.get_texts(row, [key for key in COLUMNS if key != "options"], location)
        if texts["duration"] not in DURATIONS:
            raise InputError(
                f"{location}.duration: expected one of {', '.join(DURATIONS)}, found {texts['duration']!r}"
            )
        options, answer = qa.get_options(row, "options", location), texts["answer"]
        index = qa.letter_index(options, answer, location)
        videos = tuple(f"{folder}{texts['videoID']}.mp4" for folder in FOLDERS)
        labels = {key: texts[key] for key in LABELS}
        question = qa.Question(location, texts["question"], (videos,), options, answer, index, labels)
        questions.append((texts["question_id"], question))
    return qa.reader("videomme", split, path, root, questions, qa.video_with_sound)
