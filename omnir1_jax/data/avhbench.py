"""AVHBench: does a model hear what it only sees, or see what it only hears? Answers Yes or No.

One json list of {video_id, task, text, label} (at the root) and `<video_id>.mp4`, at the root or in `videos/`.
Besides the three tasks judged by Yes and No there is captioning, left out unless asked for.
"""

from omnir1_jax.data import metadata, qa
from omnir1_jax.data.reader import TableReader, check_source
from omnir1_jax.data.refs import VideoAudio, VideoFile
from omnir1_jax.errors import InputError

JUDGE_TASKS = ("Audio-driven Video Hallucination", "Video-driven Audio Hallucination", "AV Matching")
TABLES = ("QA.json", "qa.json", "data.json", "AVHBench.json", "avhbench.json", "test.json")
FOLDERS = ("", "videos/", "video/", "data/")


def open(root: str, split: str = "test", captioning: bool = False) -> TableReader:
    """`extra`: options ("Yes", "No"), answer, answer_index (0 is Yes), task, video_id; for captioning the reference
    text as answer and no options. Raises `InputError` naming what is missing or wrong.
    """
    check_source("avhbench", root, split, ("test",))
    path = metadata.find(root, TABLES, "avhbench")
    questions = []
    for number, row in enumerate(metadata.load_rows(path)):
        location = f"{path} row {number}"
        texts = metadata.get_texts(row, ("task", "text", "label"), location)
        name = str(metadata.get(row, "video_id", (str, int), location))
        answer, options, index = texts["label"], (), None
        if judged(texts["task"]):
            answer, options = answer.strip().rstrip(".").capitalize(), ("Yes", "No")
            if answer not in options:
                raise InputError(f"{location}.label: expected Yes or No, found {texts['label'][:40]!r}")
            index = options.index(answer)
        elif not captioning:
            continue
        videos = tuple(f"{folder}{name}.mp4" for folder in FOLDERS)
        labels = {"task": texts["task"], "video_id": name}
        questions.append((str(number), qa.Question(location, texts["text"], (videos,), options, answer, index, labels)))
    return qa.reader("avhbench", split, path, root, questions, _sources)


def _sources(question: qa.Question, video: str) -> tuple[VideoFile, VideoAudio]:
    return VideoFile(video), VideoAudio(video)


def judged(task: str) -> bool:
    return task.replace("-", " ").lower() in {known.replace("-", " ").lower() for known in JUDGE_TASKS}
