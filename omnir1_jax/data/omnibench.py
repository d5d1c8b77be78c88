"""OmniBench: a question about one image and one sound, four options.

A table (`*.jsonl`, `*.json` or `*.parquet`, at the root or in `dataset/`) of index, task type, audio type (speech,
sound event, music), question, options, answer (an option in full), audio_path, image_path; the media are in
`mm_data/audio/` and `mm_data/image/`.
"""

from omnir1_jax.data import metadata, qa
from omnir1_jax.data.reader import TableReader, check_source
from omnir1_jax.data.refs import AudioFile, ImageFiles
from omnir1_jax.errors import InputError

AUDIO_TYPES = ("speech", "sound event", "music")
COLUMNS = ("index", "task type", "audio type", "question", "options", "answer", "audio_path", "image_path")


def open(root: str, split: str = "test") -> TableReader:
    """`extra`: options, answer, answer_index, index, task_type, audio_type. Raises `InputError`."""
    check_source("omnibench", root, split, ("test",))
    path = qa.table("omnibench", root, ("", "dataset/", "data/"), ("jsonl", "json", "parquet"))
    questions = []
    for number, row in enumerate(metadata.load_rows(path, COLUMNS), 1):
        location = f"{path} row {number}"
        index = metadata.get(row, "index", (int, str), location)
        texts = metadata.get_texts(row, [key for key in COLUMNS if key not in ("index", "options")], location)
        kind = texts["audio type"].strip().lower()
        if kind not in AUDIO_TYPES:
            raise InputError(f"{location}['audio type']: expected one of {', '.join(AUDIO_TYPES)}")
        options, answer = qa.get_options(row, "options", location), texts["answer"]
        right = qa.answer_index(options, answer, location)
        files = (f"mm_data/image/{texts['image_path']}",), (f"mm_data/audio/{texts['audio_path']}",)
        labels = {"index": index, "task_type": texts["task type"], "audio_type": kind}
        questions.append((str(index), qa.Question(location, texts["question"], files, options, answer, right, labels)))
    return qa.reader("omnibench", split, path, root, questions, _sources)


def _sources(question: qa.Question, image: str, sound: str) -> tuple[ImageFiles, AudioFile]:
    return ImageFiles((image,), ("0",)), AudioFile(sound)
