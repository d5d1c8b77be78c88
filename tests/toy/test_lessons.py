"""Lessons of the fleeting world: they fit their shapes, and say what is seen and heard in clips with their sound."""

import collections
import importlib.util
import re

import numpy as np
import pytest

from omnir1_jax.build import data, models, objectives
from omnir1_jax.config import sections, settings
from omnir1_jax.data.clips import decode
from omnir1_jax.data.synthetic import scenes, writers
from omnir1_jax.data.synthetic.world import PRESETS
from omnir1_jax.toy import lessons, sight
from tests.runs import ROOT

ENTRY = r"([a-z]+ [a-z]+)(?: (\d)-(\d))?(?: (low|middle|high) (\d)-(\d))?"
PLAN = (
    r"(?s)(?:Plan|Which): (.*?)<\|im_end\|>.*<think> (.*): (.*)</think>"
    r'.*start_time": "00:(\d\d\.\d\d)".*description": "(.*)"}'
)


def config_of(name: str, *part: str):
    given = importlib.util.spec_from_file_location(name, ROOT / f"configs/{name}.py")
    module = importlib.util.module_from_spec(given)
    given.loader.exec_module(module)
    return module.get_config(*part)


@pytest.fixture(scope="module")
def config():
    config = config_of("toy_pretrain", "cold_start")
    config.thinker.path = str(ROOT / "configs/toy_weights/thinker_fleeting")
    config.data.timelines.targets = 5  # all that one may ask
    return config


@pytest.mark.parametrize("name", ["grounding", "timelines", "plans", "recordings"])
def test_lessons_of_the_fleeting_world(config, name):
    words, thinker = models.tokenizer(config), models.sizes(config).thinker
    own = objectives._sft_config(config, name, words, thinker)
    (reader,) = data.readers(config, name)
    said, made = [], 0
    for k in range(8):
        clip = decode(reader[k], settings.section(sections.Task, config.data[name]), np.random.default_rng(k))
        if name == "recordings" and not sight.seen(clip)[:, 0].any():
            continue
        arrays = lessons.EXAMPLES[config.data[name].example](clip, own)
        made += 1
        ids, lengths = arrays["target/tokens"], arrays["target/lengths"]
        rows = zip(ids.reshape(-1, ids.shape[-1]), lengths.reshape(-1))
        said += [words.decode(row[:length]) for row, length in rows if length]
        if name != "grounding":
            assert (arrays["policy/audio_index"] >= 0).sum() == {"recordings": 100}.get(name, 200)  # 25 a second
    assert made >= 6
    if name == "timelines":
        assert any(text.startswith("Hear:") and "nothing" not in text for text in said)
        assert any("Which:" in text and ("heard" in text or "sound" in text) for text in said)
        for text in (text.partition("assistant\n ")[2] for text in said if text.startswith("Tell:")):
            story, *answers = re.split(r"\. [^:]*: ", text.removesuffix("<|im_end|>"))
            told = {re.sub(r" (low|middle|high) .*", "", entry) for entry in story.split(", ")}
            assert len(answers) >= 4 and told >= {*answers}
    if name == "grounding":
        for there in (True, False):
            assert any(" shape" in text for text in said if ("[]" not in text) == there)
    if name == "plans":
        assert all(text.count("start_time") == 1 for text in said)
        named = [
            re.search(r": ([a-z]+ [a-z]+) \d-\d</think>.*\"description\": \"(.*)\"}", text).groups() for text in said
        ]
        assert all(thought == answer for thought, answer in named)


@pytest.mark.parametrize("name, told", [("plans", 0.0), ("plans", 1.0), ("timelines", 0.0)])
def test_plans_choose_by_habit_or_by_the_query_and_questions_are_answered_rightly(config, name, told, monkeypatch):
    monkeypatch.setattr(lessons, "TOLD", told)
    knowing = told or name == "timelines"
    words, thinker = models.tokenizer(config), models.sizes(config).thinker
    own, made = objectives._sft_config(config, name, words, thinker), 0
    (reader,) = data.readers(config, name)
    for k in range(32):
        clip = decode(reader[k], settings.section(sections.Task, config.data[name]), np.random.default_rng(k))
        arrays = lessons.EXAMPLES[config.data[name].example](clip, own)
        looks, visible = clip.ref.extra["looks"], sight.seen(clip) & sight.lit(clip)
        for row, length in zip(arrays["target/tokens"], arrays["target/lengths"]):
            if not (match := re.search(PLAN, words.decode(row[:length]))):
                continue  # another question
            query, story, again, second, look = match.groups()
            assert re.match(f"{look} \\d-\\d$", again) and f", {again}" in f", {story}"
            meant = {s["text"]: s["obj_id"] for s in clip.ref.extra["sentences"]}[query]
            assert look == (looks[meant[0]] if knowing else re.match("[a-z]+ [a-z]+", story)[0])
            shown, frame = visible[[n for n, other in enumerate(looks) if other == look]].any(0), int(2 * float(second))
            assert shown[frame] or not shown.any() if knowing else frame == 8
            made += 1
    assert made >= 48


@pytest.mark.parametrize("name", ["timelines", "recordings"])
def test_a_timeline_tells_who_comes_when_and_sounds(config, name):
    """Held against the scene itself, not against the masks that it is told from."""
    (reader,) = data.readers(config, name)
    world = PRESETS["fleeting"] if name == "timelines" else PRESETS["fleeting"].recorded()
    task = settings.section(sections.Task, config.data[name])
    for k in range(8):
        scene = scenes.make_scene(world, writers.clip_seed(0, "train", k))
        clip = decode(reader[k], task, np.random.default_rng(k))
        shapes = [n for n in range(len(scene.shapes)) if sight.seen(clip)[n].any()]
        entries = [re.fullmatch(ENTRY, entry).groups() for entry in lessons.timeline(clip, shapes)[1:].split(", ")]
        told = collections.Counter((look, *heard) for look, _, _, *heard in entries)
        heard = {n: _seconds(shape.sounds, world.fps) for n, shape in enumerate(scene.shapes)}
        assert told == collections.Counter(
            (f"{scene.shapes[n].colour} {scene.shapes[n].kind}", scene.shapes[n].tone, *heard[n]) for n in shapes
        )
        if name == "recordings":
            assert all(first is None for _, first, *_ in entries)
            continue
        spans = [(int(first), int(last)) for _, first, last, *_ in entries]
        assert spans == sorted(spans)
        for (look, *_), (first, last) in zip(entries, spans):
            stays = [s.present for s in scene.shapes if f"{s.colour} {s.kind}" == look]
            assert any(start // 2 <= first <= last <= (end - 1) // 2 for start, end in stays)


def _seconds(frames: tuple[int, int] | None, fps: int) -> tuple[str | None, str | None]:
    """The first and the last second that a span of frames touches."""
    return (None, None) if frames is None else (str(int(frames[0] // fps)), str(int(np.ceil(frames[1] / fps)) - 1))


@pytest.mark.parametrize("name", ["recalls", "stories"])
def test_texts_ask_for_what_they_tell(config, name):
    words = models.tokenizer(config)
    own = objectives._sft_config(config, name, words, models.sizes(config).thinker)
    (reader,) = data.readers(config, name)
    asked = 0
    for k in range(8):
        clip = decode(reader[k], settings.section(sections.Task, config.data[name]), np.random.default_rng(k))
        arrays = lessons.EXAMPLES[config.data[name].example](clip, own)
        assert (arrays["policy/vision_index"] == -1).all() and (arrays["policy/audio_index"] == -1).all()
        for row, length, learnt in zip(*(arrays[f"target/{part}"] for part in ("tokens", "lengths", "weights"))):
            text = words.decode(row[:length]).removesuffix("<|im_end|>")
            if name == "recalls":
                story, _, answer = text.partition("<think> ")[2].partition(": ")
                answers = answer.split(", ")
                assert len(answers) == len(story.split(", "))
                assert words.decode(row[learnt > 0]) == f" {answer}<|im_end|>"
            else:
                story = words.decode(arrays["policy/tokens"]).rpartition("user\n ")[2]
                answers = re.findall(r"\. [^:]*: ([^.]*)", text)
                assert len(answers) == text.count(":")
            told = {re.sub(r" (low|middle|high) .*", "", entry) for entry in story.split(", ")}
            assert told >= {*answers}
            asked += len(answers)
    assert asked >= 96


ORDER = {
    "(enters|comes in) last": (0, max),
    "is the first to come in": (0, min),
    "(leaves first|is the first to go)": (1, min),
    "is the last to go": (1, max),
}


def test_who_comes_and_goes_when_follows_from_the_timeline(config):
    """Seconds tell order apart, specks included: what no timeline tells cannot be learnt from one."""
    (reader,) = data.readers(config, "timelines")
    task, right = settings.section(sections.Task, config.data.timelines), []
    for k in range(24):
        clip = decode(reader[k], task, np.random.default_rng(k))
        told, looks = lessons.entries(clip, range(len(clip.masks))), clip.ref.extra["looks"]
        spans = {n: tuple(map(int, re.search(r" (\d)-(\d)", words).groups())) for n, words in told.items()}
        for sentence in clip.ref.extra["sentences"]:
            for clause, (end, most) in ORDER.items():
                if not (match := re.fullmatch(f"the (.*) that {clause}", sentence["text"])) or "striped" in match[1]:
                    continue
                noun = set(match[1].split()) - {"shape", "one"}
                fitting = {n: span for n, span in spans.items() if noun <= {*looks[n].split()}}
                coming = {n: span[end] for n, span in fitting.items() if 0 < span[end] + end < 8}
                first = most(coming.values(), default=None)
                right.append([n for n, second in coming.items() if second == first] == sentence["obj_id"])
    assert len(right) > 60 and np.mean(right) > 0.95


@pytest.mark.parametrize("name, seconds", [("vos", 8), ("refavs", 4)])
def test_queries_of_the_fleeting_world_fit_their_prompts(name, seconds):
    """Both families hear: 25 audio tokens a second stand in System 1's prompt."""
    config = config_of("toy_fleeting")
    words, thinker = models.tokenizer(config), models.sizes(config).thinker
    (reader,) = data.readers(config, name)
    own, transform = data.example_config(config, name, words, thinker), data.example_of(config, name).transform
    for k in range(0, 24, 3):
        clip = decode(reader[k], settings.section(sections.Task, config.data[name]), np.random.default_rng(k))
        arrays = transform(clip, own)
        assert (arrays["policy/audio_index"] >= 0).sum() == 25 * seconds
        assert len(arrays["sharp/cells"]) == config.data[name].frames
