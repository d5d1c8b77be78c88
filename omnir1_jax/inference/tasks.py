"""From a config and the name of a benchmark to what is asked: the reader, the prompts, which items."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from omnir1_jax.build import data
from omnir1_jax.config import lookup, settings
from omnir1_jax.data.clips import DecodeConfig
from omnir1_jax.data.preprocess.settings import PixelBudget
from omnir1_jax.errors import InputError
from omnir1_jax.inference.load import Systems
from omnir1_jax.inference.samples import SOUNDS, Benchmark, read_boxes
from omnir1_jax.systems import prompts

# family, split, seconds of sound that are heard (questions)
BENCHMARKS: dict[str, tuple[str, str, float]] = {
    "revos": ("vos", "valid", 0.0),
    "mevis": ("vos", "valid_u", 0.0),
    "refytvos": ("vos", "valid", 0.0),
    "refdavis": ("vos", "valid", 0.0),
    "refavs": ("refavs", "test_s", 10.0),
    "omnibench": ("qa", "test", 30.0),
    "videomme": ("qa", "test", 0.0),
    "mvbench": ("qa", "test", 0.0),
    "avhbench": ("qa", "test", 10.0),
}
SYNTHETIC = "synthetic"
FRAMES = 24
HELD_OUT_CLIPS = 64
EVERY = 10**6  # objects of a target: all of them


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen of an evaluation; empty and zero mean the benchmark's or the config's own.

    Attributes:
      tasks: of the config that are held out (benchmark "synthetic").
      limit: most items, the first ones.
      frames, sampling: that System 1 sees ("uniform" over the clip, or "video": 2 a second).
      tokens: most visual tokens of a frame for System 1.
      prompt: of questions: "thinking" or "direct".
      audio_seconds: of sound that is heard with questions; -1 for the benchmark's own.
      sound: "own", "muted" or "swapped".
      boxes, masks: file of another System 2's boxes, or masks (with system2 "file").
      scoring: "clean", or "official": as the benchmark's published script counts.
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
    system2: str = "self"
    boxes: str = ""
    masks: str = ""
    objects: int = 8
    hole_area: int = 0
    scoring: str = "clean"
    batch_size: int = 4
    seed: int = 0


def benchmarks(systems: Systems, options: Options) -> Iterator[Benchmark]:
    """What a benchmark asks; of "synthetic" one for each family of the config.

    Raises:
      InputError: names the flag that will not do.
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
    family, split, seconds = BENCHMARKS[options.benchmark]
    own = _entry(systems.config, family)
    root = options.root or _root(own, options.benchmark)
    if not root:
        raise InputError(f"--root: name the directory of {options.benchmark}; {data.TRY}")
    if family == "qa":
        own.audio_seconds = seconds if options.audio_seconds < 0 else options.audio_seconds
    own.datasets = settings.datasets(**{options.benchmark: dict(root=root, split=options.split or split)})
    yield _benchmark(systems, options, family, options.benchmark, own)


def positions(benchmark: Benchmark, options: Options) -> list[int]:
    """Which items; of the synthetic world one of each clip, in turn the first, the second, ... ."""
    if benchmark.reader.name == SYNTHETIC:
        groups = benchmark.reader.clips()
        found = [group[i % len(group)] for i, group in enumerate(groups)]
    else:
        found = list(range(len(benchmark.reader)))
    return found[: options.limit] if options.limit else found


def _held_out(systems: Systems, options: Options) -> Iterator[Benchmark]:
    entries = systems.config.data
    # Of a task of the user's own no benchmark knows what to score.
    known = [name for name, one in entries.items() if _synthetic(one) and not lookup.is_path(one.family)]
    if not known:
        raise InputError("--benchmark: the config has no task of this package in the synthetic world to hold out")
    for name in options.tasks or known:
        if name not in known:
            raise InputError(f"--tasks: {name!r} is none of {', '.join(known)}")
        own = _copy(systems.config.data[name])
        label = _synthetic(own)
        held_out = own.datasets[label].to_dict() | {
            "split": options.split or "valid",
            "clips": options.limit or HELD_OUT_CLIPS,
        }
        held_out.pop("lessons", None)
        own.datasets = settings.datasets(**{SYNTHETIC: held_out})
        yield _benchmark(systems, options, own.family or name, name, own)


def _synthetic(entry: ConfigDict) -> str | None:
    return next((label for label, one in entry.datasets.items() if one.name == SYNTHETIC), None)


def _copy(entry: ConfigDict) -> ConfigDict:
    plain = entry.to_dict()
    return settings.task(**plain)


def _entry(config: ConfigDict, family: str) -> ConfigDict:
    """The config's own task of the family, or a plain one."""
    for name, entry in config.data.items():
        if (entry.family or name) == family:
            return _copy(entry)
    if family == "refavs":
        return settings.task(frames=1, sampling="first", sound="required", audio_seconds=10.0)
    return settings.task(frames=FRAMES)


def _root(entry: ConfigDict, benchmark: str) -> str:
    return next((one.root for one in entry.datasets.values() if one.name == benchmark), "")


def _benchmark(systems: Systems, options: Options, family: str, name: str, entry: ConfigDict) -> Benchmark:
    config = systems.config.copy_and_resolve_references()
    if family == "refavs":
        entry.frames, sampling = 1, "first"
        if options.frames or options.sampling:
            raise InputError("--frames, --sampling: System 1 sees the first frame of a Ref-AVS clip")
    else:
        entry.frames = options.frames or entry.frames
        sampling = options.sampling or ("video" if family == "qa" else "uniform")
    entry.family = family
    if options.prompt and family == "qa":
        config.prompts.qa = _question_prompt(options.prompt, "qa")
    with config.unlocked():
        config.data = ConfigDict({family: entry})
    example = data.example_config(config, family, systems.tokenizer, systems.thinker)
    example = dataclasses.replace(example, stills=True, letters=options.benchmark != "avhbench")
    if options.benchmark == "avhbench":
        chosen = options.prompt or ("direct" if config.prompts.qa == "qa" else "thinking")
        example = dataclasses.replace(example, template=prompts.load(_question_prompt(chosen, "yes_no")))
    if options.tokens:
        example = dataclasses.replace(example, policy_budget=_budget(example.policy_budget, options.tokens, example))
    (reader,) = data.readers(config, family)
    hears = entry.audio_seconds > 0
    decode = DecodeConfig(
        frames=entry.frames, sampling=sampling, objects=EVERY, sound="optional" if hears else "ignore"
    )
    side = systems.config.sam2.side if family != "qa" and systems.models.segmenter is not None else 0
    if family != "qa" and not side:
        raise InputError("sam2.path: masks need a segmenter; name its directory, or sam2.sizes for random weights")
    return Benchmark(
        name, family, reader, example, decode, options.objects, side, options.seed, options.sound,
        root=_where(config, family),
        found=read_boxes(options.boxes) if options.boxes else None, dataset=_only(entry).to_dict(),
    )  # fmt: skip


def _only(entry: ConfigDict) -> ConfigDict:
    """The only dataset of a task."""
    (dataset,) = entry.datasets.values()
    return dataset


def _where(config: ConfigDict, family: str) -> str:
    """The directory of the task's only dataset; "" where it is made as it is read."""
    root = _only(config.data[family]).root
    return root if not root or "://" in root else str(epath.Path(config.data_root) / root)


def _question_prompt(chosen: str, kind: str) -> str:
    if chosen not in ("thinking", "direct"):
        raise InputError(f"--prompt: {chosen!r} is none of thinking, direct")
    return kind if chosen == "direct" else f"{kind}_thinking"


def _budget(own: PixelBudget, tokens: int, example: Any) -> PixelBudget:
    most = tokens * example.sizes.cell_pixels**2
    low = min(own.image_min, own.video_min, most)
    return PixelBudget(low, most, low, most)
