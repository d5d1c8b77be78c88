"""MVBench: twenty files `json/<task>.json` of {video, question, candidates, answer}, videos below `video/`.

Five tasks ask about a part of the video (start, end in seconds). One of them, episodic_reasoning, has folders of
JPEG frames at 3 per second, numbered from 1, in place of video files.

What can be downloaded today differs from this: the videos of fine_grained_pose were withdrawn, and some of clevrer and
star are in `video/data0613/`. A task without any video is left out, and `notes` says how many questions are counted.
"""

import os

from omnir1_jax.data import metadata, paths, qa
from omnir1_jax.data.reader import TableReader, check_source
from omnir1_jax.data.refs import ImageFiles, VideoFile
from omnir1_jax.errors import InputError

FOLDERS = {
    "action_antonym": "ssv2_video",
    "action_count": "perception/videos",
    "action_localization": "sta/sta_video",
    "action_prediction": "star/Charades_v1_480",
    "action_sequence": "star/Charades_v1_480",
    "character_order": "perception/videos",
    "counterfactual_inference": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd",
    "moving_attribute": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "unexpected_action": "FunQA_test/test",
}
BOUNDED = ("action_localization", "action_prediction", "action_sequence", "episodic_reasoning", "object_interaction")
ADDED = "data0613"  # a folder like `video/` with videos that the archives of clevrer and star lack
FRAME_TASK, FRAME_RATE = "episodic_reasoning", 3.0


def open(root: str, split: str = "test", tasks: tuple[str, ...] = tuple(FOLDERS)) -> TableReader:
    """Items of the given tasks, all twenty by default. `extra`: options, answer, answer_index, task, start, end.

    Tasks without any video are left out. Raises `InputError` naming what is missing or wrong.
    """
    check_source("mvbench", root, split, ("test",))
    if unknown := [task for task in tasks if task not in FOLDERS]:
        raise InputError(f"mvbench has no task '{unknown[0]}'; the tasks are {', '.join(FOLDERS)}")
    questions = {task: _task_questions(root, task) for task in tasks}
    present = [task for task in tasks if any(_has_media(root, question) for _, question in questions[task])]
    notes = tuple(
        f"{task}: {len(questions[task])} questions left out: none of their videos is in {root}/video/{FOLDERS[task]}"
        for task in tasks
        if present and task not in present
    )
    chosen = [question for task in present or tasks for question in questions[task]]
    if notes:
        notes += (f"the total is over {len(chosen)} questions of {len(present)} of {len(tasks)} tasks",)
    return qa.reader("mvbench", split, f"{root}/json", root, chosen, _sources, notes)


def _task_questions(root: str, task: str) -> list[tuple[str, qa.Question]]:
    path = paths.existing(root, f"json/{task}.json", "mvbench")
    questions = []
    for number, row in enumerate(metadata.load_rows(path)):
        location = f"{path} row {number}"
        options = qa.get_options(row, "candidates", location)
        texts = metadata.get_texts(row, ("answer", "video", "question"), location)
        index, start, end = qa.answer_index(options, texts["answer"], location), None, None
        if task in BOUNDED:
            start, end = (metadata.get_number(row, key, location) for key in ("start", "end"))
            if not 0 <= start < end < float("inf"):
                raise InputError(f"{location}: expected 0 <= start < end, found {start} and {end}")
        name = f"{FOLDERS[task]}/{texts['video']}"
        media = ((f"video/{name}", f"video/{ADDED}/{name}"),)
        labels = {"task": task, "video": texts["video"], "start": start, "end": end}
        question = qa.Question(location, texts["question"], media, options, texts["answer"], index, labels)
        questions.append((f"{task}/{number}", question))
    return questions


def _has_media(root: str, question: qa.Question) -> bool:
    return any(paths.exists(paths.inside(root, name, question.location)) for name in question.media[0])


def frame_span(count: int, start: float, end: float) -> range:
    """Numbers (from 1) of the frames of a folder of `count` that show `start` to `end` seconds; at least one."""
    first = max(1, round(start * FRAME_RATE))
    last = min(count, round(end * FRAME_RATE))
    return range(min(first, count), max(first, last) + 1) if first <= count else range(count, count + 1)


def _sources(question: qa.Question, path: str) -> tuple[VideoFile | ImageFiles, None]:
    start, end = question.extra["start"], question.extra["end"]
    if question.extra["task"] != FRAME_TASK:
        return VideoFile(path, start, end), None
    try:
        count = len([name for name in os.listdir(path) if name.endswith(".jpg") and not name.startswith(".")])
    except OSError as error:
        raise InputError(f"{question.location}: the directory {path} cannot be read ({error.strerror})") from error
    if count == 0:
        raise InputError(f"{question.location}: {path} holds no JPEG frames")
    names = tuple(f"{n:05d}" for n in frame_span(count, start, end))
    files = paths.files(*os.path.split(path), [f"{n}.jpg" for n in names], question.location)
    return ImageFiles(files, names, FRAME_RATE), None
