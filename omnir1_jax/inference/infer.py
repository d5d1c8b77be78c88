"""One video and one query from files: both systems' answers, boxes and masks."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from omnir1_jax.data import audio, media
from omnir1_jax.data.audio import SAMPLE_RATE
from omnir1_jax.data.clips import DecodeConfig, choose_frames
from omnir1_jax.data.preprocess import tokens
from omnir1_jax.data.reader import in_memory
from omnir1_jax.data.refs import AudioFile, BadSample, ClipRef, ImageFiles, VideoAudio, VideoFile
from omnir1_jax.errors import InputError
from omnir1_jax.files import regular_file
from omnir1_jax.inference import load, records, run, samples, tasks
from omnir1_jax.inference.answer import EvalConfig
from omnir1_jax.inference.load import Systems
from omnir1_jax.inference.samples import Benchmark
from omnir1_jax.parallel import batch_parts
from omnir1_jax.systems import prompts
from omnir1_jax.tasks import TASKS, Task

FAMILIES = ("vos", "refavs", "qa")
QUESTION_TOKENS = 512  # minimum room for a question's text in its prompt
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SECONDS = (5.0, 10.0, 20.0, 30.0)  # of sound that is heard where the config has no length; few values, so few programs
EXAMPLE = "00:00.00"


@dataclasses.dataclass(frozen=True)
class Ask:
    """A query about a video.

    Attributes:
      video: a video file, an image, or a folder of images in the order of their names; images are rotated as EXIF says.
      family: "vos": find and segment what the query names; "refavs": the same by the whole sound and the first frame;
        "qa": answer a question in text.
      audio: a sound file, or a film, heard in place of the video's own track.
      options: options of a question to choose from.
      start: start of the clip in a video file, in seconds.
      end: its end in seconds; None for the file's end.
      frames: maximum number of frames that System 1 sees; 0 for the config's.
      audio_seconds: maximum length of the sound that is heard. -1: the config's for this family; if it has none,
        questions use the video's sound, and queries only a sound file that is named.
      most_frames: maximum number of frames of the clip; a longer one is refused.
      objects: maximum number of objects of an answer.
      system2: "self", or another grounder as `systems.grounders` takes it.
    """

    video: str
    query: str
    family: str = "vos"
    audio: str = ""
    options: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None
    frames: int = 0
    audio_seconds: float = -1.0
    most_frames: int = 1000
    objects: int = 8
    system2: str = "self"

    @property
    def task(self) -> Task:
        """The task of the family."""
        return TASKS[self.family]


class Sound(NamedTuple):
    """The clip's sound and what became of it.

    Attributes:
      samples: at 16 kHz; None without a readable track.
      heard: seconds that System 1 heard.
      note: description for the user.
    """

    samples: Float[np.ndarray, " n"] | None
    heard: float
    note: str


class Result(NamedTuple):
    """The answer to a query: completion, boxes and masks.

    Attributes:
      count: number of frames of the clip. size: their height and width. fps: None for a folder of images.
      times: times in seconds at which each frame appears, and at which the clip ends; None without fps.
      seen: indices of the clip's frames that System 1 saw.
      line: record as `records.record` makes it.
      masks: masks of all frames at their own size; None where no box was found, and for questions.
    """

    ask: Ask
    ref: ClipRef
    count: int
    size: tuple[int, int]
    fps: float | None
    times: Float[np.ndarray, " edges"] | None
    seen: tuple[int, ...]
    sound: Sound
    line: Mapping[str, Any]
    masks: Bool[np.ndarray, "t h w"] | None


def answer(systems: Systems, ask: Ask, seed: int = 0) -> Result:
    """Runs both systems and the segmenter. Compiles once for each family and shape.

    Args:
      seed: seed of sampling, if it is not greedy.

    Raises:
      InputError: a file that cannot be used, or a query that does not fit; one line that names it and the reason.
    """
    if ask.family not in FAMILIES:
        raise InputError(f"--task: {ask.family!r} is none of {', '.join(FAMILIES)}")
    systems = load.grounded_by(systems, load.check(ask.system2))
    ref = clip_ref(ask)
    try:
        count, fps = media.frame_count(ref.frames, ref.sample_id), media.frame_rate(ref.frames, ref.sample_id)
        times = media.frame_times(ref.frames, ref.sample_id)
    except BadSample as error:
        raise InputError(f"--video: {error.reason}") from error
    if count > ask.most_frames:
        raise InputError(
            f"--video: {ask.video} has {count} frames and {ask.most_frames} are taken at most; "
            "choose a part with --start and --end, or raise --most_frames"
        )
    entry = tasks.entry_of(systems.config, ask.task)
    sound, entry.audio_seconds = _sound(ask, ref, entry.audio_seconds)
    benchmark = _benchmark(systems, ask, entry, ref, sound)
    check_query(ask, benchmark, systems)
    sample = samples.read(benchmark, 0)
    if sample.fault is not None:
        raise InputError(f"{ask.video}: {sample.fault}")
    parts = 1 if systems.mesh is None else batch_parts(systems.mesh)
    batch = samples.collate([sample], parts)
    eval_config = EvalConfig(ask.task, objects=ask.objects, host=run.on_host(systems, ask.task))
    done = run.launch(systems, eval_config, batch, seed)
    answers, masks = jax.device_get((done.answers, done.masks))
    line = records.record(sample, answers, 0, ask.task, systems.tokenizer)
    clip_masks = None
    if masks is not None and any(keyframe["boxes"] for keyframe in line["keyframes"]):
        height, width = sample.size
        clip_masks = masks[0, : len(sample.clip), :height, :width]
    seen = tuple(int(t) for t in choose_frames(ref, count, benchmark.decode, np.random.default_rng(0)))
    return Result(ask, ref, count, sample.size, fps, times, seen, sound, line, clip_masks)


def clip_ref(ask: Ask) -> ClipRef:
    """The sources of frames and sound.

    Raises:
      InputError: no such file, or a folder without frames.
    """
    path = pathlib.Path(ask.video)
    if not path.exists():
        raise InputError(f"--video: {ask.video} is not there")
    if path.is_dir():
        frames = _folder(path)
    elif path.suffix.lower() in IMAGES:
        frames = ImageFiles((str(path),), (path.stem,), upright=True)
    else:
        frames = VideoFile(str(path), ask.start, ask.end)
    if not isinstance(frames, VideoFile) and (ask.start is not None or ask.end is not None):
        raise InputError("--start, --end: only a video file has times; name fewer images")
    sound = None
    if ask.audio:
        regular_file.require(ask.audio, "--audio")
        sound = AudioFile(ask.audio)
    elif isinstance(frames, VideoFile):
        sound = VideoAudio(frames.path, ask.start, ask.end, required=False)
    extra = {"options": ask.options} if ask.options else {}
    return ClipRef("infer", path.name, ask.family, ask.query, frames, sound, extra=extra)


def check_query(ask: Ask, benchmark: Benchmark, systems: Systems) -> None:
    """InputError for a query that is empty, holds control tokens, or does not fit its prompt."""
    flag, tokenizer = "--query", systems.tokenizer
    if not ask.query.strip():
        raise InputError(f"{flag}: is empty; say what to {'find' if ask.task.grounds else 'answer'}")
    for text in (ask.query, *ask.options):
        tokens.check_unicode(text, flag)
        control = sorted(token for token in tokenizer.get_added_vocab() if token.strip() and token in text)
        if control:
            raise InputError(f"{flag}: holds {control[0]}, a control token of the model; write it in another way")
    if len(ask.options) == 1:
        raise InputError("--option: one option leaves nothing to choose; give two or more, or none")
    example = benchmark.example
    text = prompts.render(
        example.template, query=ask.query, options="\n".join(f"A. {option}" for option in ask.options),
        duration="00", fps="0", example=f"{EXAMPLE} {EXAMPLE} {EXAMPLE} {EXAMPLE}" + " description" * 8,
    )  # fmt: skip
    messages = [{"role": "system", "content": example.system}, {"role": "user", "content": text}]
    used = len(tokenizer(tokens.chat_text(messages), add_special_tokens=False)["input_ids"])
    if used + 8 > example.text_tokens:
        query_tokens = len(tokenizer(ask.query, add_special_tokens=False)["input_ids"])
        fitting = max(example.text_tokens - 8 - (used - query_tokens), 0)
        raise InputError(
            f"{flag}: {len(ask.query)} characters come to {query_tokens} tokens and about {fitting} fit; shorten it, "
            f"or take --config=FILE --config.prompts.text_tokens={-(-used // 64) * 64 + 64}"
        )


def sections(completion: str) -> tuple[str, str]:
    """A completion's text between its think tags, and between its answer tags (all of it where there are none)."""
    inside = lambda tag: completion.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0].strip()
    return inside("think"), inside("answer") if "<answer>" in completion else completion.strip()


def _folder(path: pathlib.Path) -> ImageFiles:
    # Hidden files are made by systems and editors, such as ._1.jpg beside each image on a disk from a Mac.
    images = [file for file in path.iterdir() if file.suffix.lower() in IMAGES and not file.name.startswith(".")]
    if not images:
        raise InputError(
            f"--video: {path} holds no image ({', '.join(IMAGES)}); name a video file or a folder of frames"
        )
    images.sort(key=_natural)
    names = [file.stem for file in images]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"--video: {path} holds two images named {twice}; keep one")
    return ImageFiles(tuple(map(str, images)), tuple(names), upright=True)


def _natural(file: pathlib.Path) -> list[Any]:
    """2 before 10."""
    parts = re.split(r"([0-9]+)", file.stem)  # not every Unicode digit is part of a number
    return [(i % 2 == 0, int(part) if i % 2 else 0, part) for i, part in enumerate(parts)]


def _sound(ask: Ask, ref: ClipRef, default_seconds: float) -> tuple[Sound, float]:
    """The sound, and the prompt's capacity for sound in seconds."""
    if ref.audio is None:
        if ask.task.needs_sound:
            raise InputError("--audio: this task needs sound, and images have none; name a sound file")
        return Sound(None, 0.0, "no sound was given"), 0.0
    wants_sound = ask.audio_seconds > 0 or (
        ask.audio_seconds < 0 and (default_seconds > 0 or bool(ask.audio) or not ask.task.grounds)
    )
    source = ask.audio or ask.video
    try:
        wave = audio.load_audio(ref.audio, sample_id=ref.sample_id)
    except BadSample as error:
        if wants_sound:
            raise InputError(f"{'--audio' if ask.audio else '--video'}: {error.reason}") from error
        return Sound(None, 0.0, f"not heard; it cannot be read: {error.reason}"), 0.0
    if wave is None:
        if ask.task.needs_sound:
            raise InputError(f"--video: {source} has no audio track, which this task needs; name one with --audio")
        return Sound(None, 0.0, "the video has no audio track"), 0.0
    length = len(wave) / SAMPLE_RATE
    silence = "" if wave.any() else "; the sound is silent throughout"
    if not wants_sound:
        return Sound(wave, 0.0, "not heard: this query goes by sight" + silence), 0.0
    seconds = ask.audio_seconds if ask.audio_seconds > 0 else default_seconds
    if seconds <= 0:
        seconds = next((size for size in SECONDS if size >= length), SECONDS[-1])
    audible = min(length, seconds)
    note = "heard whole" if audible == length else f"heard for the first {audible:g} of {length:.1f} seconds"
    return Sound(wave, audible, note + silence), float(seconds)


def _benchmark(systems: Systems, ask: Ask, entry: ConfigDict, ref: ClipRef, sound: Sound) -> Benchmark:
    task = ask.task
    entry.frames = 1 if task.sampling == "first" else ask.frames or entry.frames
    example = tasks.example_of(systems, tasks.alone(systems.config, task.name, entry))
    if not task.grounds:
        template = example.template if ask.options else prompts.load(task.templates["open"], ("query",))
        # The config's capacity is for its training prompts, and those of the toy are short.
        text_tokens = max(example.text_tokens, QUESTION_TOKENS)
        example = dataclasses.replace(example, template=template, text_tokens=text_tokens)
    decode = DecodeConfig(frames=entry.frames, sampling=task.sampling, sound="optional" if sound.heard else "ignore")
    reader = in_memory("infer", "own", [ref])
    return Benchmark("infer", task, reader, example, decode, ask.objects, tasks.segmenter_side(systems, task))
