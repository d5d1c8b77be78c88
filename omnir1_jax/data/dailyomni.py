"""Daily-Omni: questions about videos of daily life that take both sight and sound; four options, the answer a letter.

`qa.json` (or `QA_all.json`), a list of {Question, Choice, Answer, video_id, Type, video_category, video_duration};
`Videos/<video_id>/<video_id>_video.mp4`, with the sound in its track or beside it as `<video_id>_audio.wav`.
(Lliar-liar/Daily-Omni: test_model/Qwen2.5-Omni/testmodel.py)
"""

from omnir1_jax.data import metadata, paths, qa
from omnir1_jax.data.reader import TableReader, check_source
from omnir1_jax.data.refs import AudioFile, VideoAudio, VideoFile

TABLES = ("qa.json", "QA_all.json")
FOLDERS = ("Videos/", "")
LABELS = {"Type": "task_type", "video_category": "video_category", "video_duration": "duration"}


def open(root: str, split: str = "test") -> TableReader:
    """`extra`: options, answer (a letter), answer_index, video_id, task_type, video_category, duration ("30s", "60s").

    Raises `InputError` naming what is missing or wrong.
    """
    check_source("dailyomni", root, split, ("test",))
    path = metadata.find(root, TABLES, "dailyomni")
    questions = []
    for number, row in enumerate(metadata.load_rows(path)):
        location = f"{path} row {number}"
        texts = metadata.get_texts(row, ("Question", "Answer", "video_id", *LABELS), location)
        answer, name = texts["Answer"].strip().upper(), texts["video_id"]
        options = qa.get_options(row, "Choice", location)
        index = qa.letter_index(options, answer, location)
        videos = tuple(f"{folder}{name}/{name}_video.mp4" for folder in FOLDERS)
        labels = {label: texts[key] for key, label in LABELS.items()} | {"video_id": name}
        question = qa.Question(location, texts["Question"], (videos,), options, answer, index, labels)
        questions.append((str(number), question))
    return qa.reader("dailyomni", split, path, root, questions, _sources)


def _sources(question: qa.Question, video: str) -> tuple[VideoFile, AudioFile | VideoAudio]:
    sound_file = video.removesuffix("_video.mp4") + "_audio.wav"
    return VideoFile(video), AudioFile(sound_file) if paths.exists(sound_file) else VideoAudio(video, required=False)
