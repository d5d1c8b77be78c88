"""Benchmarks from a config and a name: the reader, the prompts, the items."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from omnir1_jax import tasks
from omnir1_jax.build import data
from omnir1_jax.config import lookup, settings
from omnir1_jax.data.clips import DecodeConfig
from omnir1_jax.data.preprocess.settings import PixelBudget
from omnir1_jax.errors import InputError
from omnir1_jax.inference.load import Systems
from omnir1_jax.inference.samples import SOUNDS, Benchmark, read_boxes
from omnir1_jax.systems import prompts
from omnir1_jax.tasks.examples import ExampleConfig


class Published(NamedTuple):
    """A benchmark.

    Attributes:
      task: name of its task.
      audio_seconds: maximum sound; None for the config's.
      templates: templates instead of the task's, by the names of --prompt.
      letters: whether options are listed with letters.
      items, videos: published numbers in a split, if the benchmark's authors or the paper give them.
    """

    task: tasks.Task
    split: str
    audio_seconds: float | None = None
    templates: Mapping[str, str] | None = None
    letters: bool = True
    items: Mapping[str, int] = MappingProxyType({})
    videos: Mapping[str, int] = MappingProxyType({})


_VOS, _QA = tasks.TASKS["vos"], tasks.TASKS["qa"]
BENCHMARKS: dict[str, Published] = {
    "revos": Published(_VOS, "valid", items={"valid": 5822}),  # 3,130 referring, 2,475 reasoning, 217 without a target
    "mevis": Published(_VOS, "valid_u", items={"train": 23051, "valid_u": 793, "valid": 2236}),
    "refytvos": Published(_VOS, "valid", videos={"train": 3471, "valid": 202, "test": 305}),  # youtube-vos.org
    "refdavis": Published(_VOS, "valid", items={"valid": 244}),  # four of each of 61 objects in 30 videos
    "reasonvos": Published(_VOS, "test", items={"test": 458}),
    "refavs": Published(
        tasks.TASKS["refavs"], "test_s",
        items={"train": 14113, "val": 1349, "test_s": 2288, "test_u": 1656, "test_n": 1028},
    ),
    "omnibench": Published(_QA, "test", 30.0, items={"test": 1142}),
    "dailyomni": Published(_QA, "test", 60.0, items={"test": 1197}),
    "videomme": Published(_QA, "test", 0.0, items={"test": 2700}),
    "mvbench": Published(_QA, "test", 0.0, items={"test": 4000}),
    "avhbench": Published(
        _QA, "test", 10.0, templates={"direct": "yes_no", "thinking": "yes_no_thinking"}, letters=False,
        items={"test": 5302},  # of the judged tasks, as the paper counts
    ),
}  # fmt: skip
SYNTHETIC = "synthetic"
FRAMES = 24
HELD_OUT_CLIPS = 64
EVERY = 10**6  # objects of a target: all of them


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of an evaluation; empty and zero mean the benchmark's or the config's value.

    Attributes:
      tasks: the config's held-out tasks to evaluate (benchmark "synthetic").
      limit: maximum number of items, from the first.
      frames, sampling: frames that System 1 sees ("uniform" over the clip, or "video": 2 per second).
      tokens: maximum visual tokens of a frame for System 1.
      prompt: prompt of questions: "thinking" or "direct".
      audio_seconds: maximum sound of questions; -1 for the benchmark's.
      sound: "own", "muted" or "swapped".
      keyframes, description: see `answer.EvalConfig`.
      boxes, masks: file of another System 2's boxes, or masks (with system2 "file").
      scoring: "clean", or "official": as the benchmark's published script.
      objects: slots for objects. hole_area: holes of masks up to this many pixels are filled.
    """

    benchmark: str
    split: str = ""
    root: str = ""
    tasks: tuple[str, ...] = ()
    limit: int = 0
    frames: int = 0
    sampling: str = ""
    tokens: int = 0
    prompt: str = ""
    audio_seconds: float = -1.0
    sound: str = "own"
    keyframes: str = "plan"
    description: str = "plan"
    system2: str = "self"
    boxes: str = ""
    masks: str = ""
    objects: int = 8
    hole_area: int = 0
    scoring: str = "clean"
    batch_size: int = 4
    seed: int = 0


def benchmarks(systems: Systems, options: Options) -> Iterator[Benchmark]:
    """The tasks of a benchmark; for "synthetic" one for each task of the config whose answers can be scored.

    Raises:
      InputError: names the flag that is invalid.
    """
    if options.sound not in SOUNDS:
        raise InputError(f"--sound: {options.sound!r} is none of {', '.join(SOUNDS)}")
    if options.sampling not in ("", "uniform", "video"):
        raise InputError(f"--sampling: {options.sampling!r} is none of uniform, video")
    if (options.system2 == "file") != bool(options.boxes or options.masks):
        raise InputError("--boxes, --masks: a file of either goes with --system2=file, and only with it")
    if options.boxes and options.masks:
        raise InputError("--masks: takes the place of --boxes; name one of them")
    if options.benchmark == SYNTHETIC:
        yield from _held_out(systems, options)
        return
    if options.benchmark not in BENCHMARKS:
        raise InputError(f"--benchmark: {options.benchmark!r} is none of {', '.join((*BENCHMARKS, SYNTHETIC))}")
    published = BENCHMARKS[options.benchmark]
    entry = entry_of(systems.config, published.task)
    roots = (dataset.root for dataset in entry.datasets.values() if dataset.name == options.benchmark)
    # What a command names is where the command is run; otherwise as the config's own, which may be elsewhere.
    root = os.path.abspath(options.root) if os.path.exists(options.root) else options.root or next(roots, "")
    if not root:
        raise InputError(f"--root: name the directory of {options.benchmark}; {data.TRY}")
    if published.audio_seconds is not None:
        entry.audio_seconds = published.audio_seconds if options.audio_seconds < 0 else options.audio_seconds
    split = options.split or published.split
    entry.datasets = settings.datasets(**{options.benchmark: dict(root=root, split=split)})
    yield _benchmark(systems, options, published, options.benchmark, entry)


def positions(benchmark: Benchmark, options: Options) -> list[int]:
    """Positions of the items; of the synthetic world one per clip, in turn the first, the second, ... ."""
    if benchmark.reader.name == SYNTHETIC:
        groups = benchmark.reader.clips()
        chosen = [group[i % len(group)] for i, group in enumerate(groups)]
    else:
        chosen = list(range(len(benchmark.reader)))
    return chosen[: options.limit] if options.limit else chosen


def count_note(benchmark: Benchmark) -> tuple[str, ...]:
    """A warning if a dataset on disk has other items than published: the score of a part is not the benchmark's."""
    reader = benchmark.reader
    if (published := BENCHMARKS.get(reader.name)) is None:
        return ()
    counts = {"items": len(reader), "videos": len(reader.clips())}
    expected = {kind: getattr(published, kind).get(reader.split, count) for kind, count in counts.items()}
    return tuple(
        f"{benchmark.name}/{reader.split}: {count} {kind} are there, {expected[kind]} were published"
        for kind, count in counts.items()
        if count != expected[kind]
    )


def _held_out(systems: Systems, options: Options) -> Iterator[Benchmark]:
    entries = systems.config.data
    names = [name for name in entries if _held_out_dataset(entries[name]) and _family(systems.config, name).scored]
    if not names:
        raise InputError(
            "--benchmark: the config has no task to hold out: one in the synthetic world or on a dataset of your own, "
            "whose masks or metric can be scored"
        )
    for name in options.tasks or names:
        if name not in names:
            raise InputError(f"--tasks: {name!r} is none of {', '.join(names)}")
        entry, task = settings.task(**entries[name].to_dict()), _family(systems.config, name)
        label = _held_out_dataset(entry)
        dataset = entry.datasets[label].to_dict() | {"split": options.split or "valid"}
        if dataset["name"] == SYNTHETIC:
            dataset["clips"] = options.limit or HELD_OUT_CLIPS
            if task in tasks.TASKS.values():
                dataset.pop("lessons", None)  # which have no query
        entry.datasets = settings.datasets(**{label: dataset})
        yield _benchmark(systems, options, Published(task, "valid"), name, entry)


def _held_out_dataset(entry: ConfigDict) -> str | None:
    """Its first dataset that is generated on reading, or user-defined."""
    held_out = lambda dataset: dataset.name in (SYNTHETIC, "folder") or lookup.is_path(dataset.name)
    return next((label for label, dataset in entry.datasets.items() if held_out(dataset)), None)


def _family(config: ConfigDict, name: str) -> tasks.Task:
    return tasks.get(config.data[name].family or name, f"data.{name}.family")


def entry_of(config: ConfigDict, task: tasks.Task) -> ConfigDict:
    """The config's entry of a task, or a default one."""
    for name in config.data:
        if _family(config, name) is task:
            return settings.task(**config.data[name].to_dict() | {"family": config.data[name].family or name})
    first = task.sampling == "first"
    return settings.task(
        family=task.name, frames=1 if first else FRAMES, audio_seconds=10.0 if task.needs_sound else 0.0
    )


def alone(config: ConfigDict, name: str, entry: ConfigDict) -> ConfigDict:
    """The config with this entry instead of its mixture."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data = ConfigDict({name: entry})
    return config


def example_of(systems: Systems, config: ConfigDict) -> ExampleConfig:
    """Config of the prompts of a config's only entry."""
    (name,) = config.data
    return dataclasses.replace(data.example_config(config, name, systems.tokenizer, systems.thinker), stills=True)


def _benchmark(systems: Systems, options: Options, published: Published, name: str, entry: ConfigDict) -> Benchmark:
    task, sampling = published.task, options.sampling or published.task.sampling
    if task.sampling == "first":
        if options.frames or options.sampling:
            raise InputError("--frames, --sampling: System 1 sees the first frame of a clip")
        entry.frames = 1
    entry.frames = options.frames or entry.frames
    key = name if name in systems.config.data else task.name
    config = alone(systems.config, key, entry)
    example = dataclasses.replace(example_of(systems, config), letters=published.letters)
    if options.prompt or published.templates:
        example = dataclasses.replace(example, template=_template(config, options.prompt, published, example.template))
    if options.tokens:
        example = dataclasses.replace(example, policy_budget=_budget(example.policy_budget, options.tokens, example))
    (reader,) = data.readers(config, key)
    decode = DecodeConfig(
        frames=entry.frames, sampling=sampling, objects=EVERY, sound="optional" if entry.audio_seconds else "ignore"
    )
    return Benchmark(
        name,
        task,
        reader,
        example,
        decode,
        objects=options.objects,
        side=segmenter_side(systems, task),
        seed=options.seed,
        sound=options.sound,
        root=_where(config, key),
        boxes=read_boxes(options.boxes) if options.boxes else None,
        dataset=_only(entry).to_dict(),
        source=entry.family if lookup.is_path(entry.family) else "",
        query_bytes=systems.config.step.description_bytes if options.description == "query" else 0,
    )


def segmenter_side(systems: Systems, task: tasks.Task) -> int:
    """Side of the segmenter's frames; 0 for a task without System 2."""
    if task.grounds and systems.models.segmenter is None:
        raise InputError(
            "sam2.path: masks need a segmenter; give --config=FILE --config.sam2.path=DIRECTORY (sam2.sizes: random "
            "weights), or ask a question, such as infer --question"
        )
    return systems.config.sam2.side if task.grounds else 0


def _template(config: ConfigDict, chosen: str, published: Published, usual: str) -> str:
    """The template that --prompt names; for a benchmark with its own templates, the one closest to the config's."""
    task = published.task
    if chosen not in ("", "thinking", "direct"):
        raise InputError(f"--prompt: {chosen!r} is none of thinking, direct")
    if published.templates:
        like = "direct" if config.prompts[task.name] == task.templates["direct"] else "thinking"
        return prompts.load(published.templates[chosen or like], ("query",))
    return prompts.load(task.templates[chosen], task.fields) if task.templates else usual


def _only(entry: ConfigDict) -> ConfigDict:
    """The only dataset of a task."""
    (dataset,) = entry.datasets.values()
    return dataset


def _where(config: ConfigDict, name: str) -> str:
    """The directory of the task's only dataset; "" if it is generated on reading."""
    root = _only(config.data[name]).root
    return str(data.root_of(config, root)) if root else ""


def _budget(budget: PixelBudget, tokens: int, example: Any) -> PixelBudget:
    max_pixels = tokens * example.sizes.cell_pixels**2
    min_pixels = min(budget.image_min, budget.video_min, max_pixels)
    return PixelBudget(min_pixels, max_pixels, min_pixels, max_pixels)
