"""The families of the input pipeline, from a config."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from omnir1_jax import tasks
from omnir1_jax.build.models import ModelSpecs, grounder_sizes, prompt_texts
from omnir1_jax.config import lookup
from omnir1_jax.config.sections import Loader, Task
from omnir1_jax.config.settings import section
from omnir1_jax.data import difficulty
from omnir1_jax.data.pipeline import ANY, Family, PipelineConfig, items
from omnir1_jax.data.preprocess.settings import PixelBudget, Sizes
from omnir1_jax.data.refs import Reader
from omnir1_jax.data.registry import open_dataset
from omnir1_jax.errors import InputError
from omnir1_jax.files import hub
from omnir1_jax.models.qwen_omni.config import ThinkerConfig
from omnir1_jax.parallel import batch_parts, parts_here
from omnir1_jax.tasks.examples import ExampleConfig

TRY = "to see everything run without data of your own, try configs/toy.py"
ROOTLESS = ("synthetic",)


class Share(NamedTuple):
    """The share of every batch that one process loads: which of its `count` equal parts."""

    parts: tuple[int, ...]
    count: int


ALL = Share((0,), 1)


class Example(NamedTuple):
    """How clips become arrays.

    Attributes:
      transform: (clip, config) -> arrays.
      clips: family of the clips it takes.
    """

    transform: Callable[..., Any]
    clips: str


def share_of(mesh: Mesh | None) -> Share:
    """The parts that the devices of this process hold."""
    return ALL if mesh is None else Share(parts_here(mesh), batch_parts(mesh))


def root_of(config: ConfigDict, root: str) -> epath.Path:
    """The path of a dataset's root: relative ones are in `data_root`, hub ids `org/name` in the hub's cache."""
    path = epath.Path(root)
    if path.is_absolute() or "://" in root:
        return path
    local = epath.Path(config.data_root) / root
    snapshot = None if local.exists() else hub.cached_dataset(root)
    return epath.Path(snapshot) if snapshot else local


def readers(config: ConfigDict, name: str) -> tuple[Reader, ...]:
    """The opened datasets of one task."""
    return _opened(config, name)[0]


def _opened(config: ConfigDict, name: str) -> tuple[tuple[Reader, ...], dict[str, difficulty.Measured]]:
    """The opened datasets of a task, and its difficulty list, empty without one."""
    measured: dict[str, difficulty.Measured] = {}
    datasets = []
    for label, entry in config.data[name].datasets.items():
        options = entry.to_dict()
        kind, root, split = options.pop("name"), options.pop("root"), options.pop("split") or None
        if kind not in ROOTLESS and (root or not lookup.is_path(kind)):  # a user's reader may need none
            path = root_of(config, root)
            if not root or not path.exists():
                directory = path if root else "no directory"
                advice = f"run python -m omnir1_jax.fetch dataset {root}, " if hub.may_be_id(root) else ""
                raise InputError(
                    f"data.{name}.datasets.{label}.root: {directory} is not there; {advice}set "
                    f"--config.data.{name}.datasets.{label}.root (or --config.data_root) to the dataset, or {TRY}"
                )
            root = str(path)
        try:
            datasets.append(open_dataset(kind, root, split, **options))
        except InputError as error:
            raise InputError(f"data.{name}.datasets.{label}: {error}") from error
    if not datasets:
        raise InputError(f"data.{name}.datasets: names no dataset")
    if entry := config.data[name].difficulty:
        measured = difficulty.read(entry, f"data.{name}.difficulty")
        min_spread = config.data[name].least_spread
        datasets = [difficulty.kept(reader, measured, min_spread) for reader in datasets]
        if not any(map(len, datasets)):
            raise InputError(f"data.{name}.least_spread: no prompt of {entry} spreads by {min_spread:g} or more")
    return tuple(datasets), measured


def task_of(config: ConfigDict, name: str) -> tasks.Task:
    """The task of an entry of the mixture."""
    entry = config.data[name]
    return tasks.get(entry.example or entry.family or name, f"data.{name}.family")


def example_of(config: ConfigDict, name: str) -> Example:
    """How training turns the clips of an entry into arrays."""
    task = task_of(config, name)
    return Example(task.example, task.clips or ANY)


def example_config(
    config: ConfigDict,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    thinker: ThinkerConfig,
    grounder: Callable[[ConfigDict], ModelSpecs | None] = grounder_sizes,
) -> ExampleConfig:
    """Config of the prompts of one task.

    Args:
      grounder: function that gives sizes and tokenizer of another thinker as grounder.
    """
    entry, texts, other = config.data[name], prompt_texts(config), grounder(config)
    task = tasks.get(entry.family or name, f"data.{name}.family")
    pixels = config.pixels
    return ExampleConfig(
        tokenizer=tokenizer,
        sizes=Sizes.of(thinker),
        system=texts["system"],
        template=texts.get(task.name, task.template),
        grounding=texts["grounding"],
        policy_budget=PixelBudget(*pixels.policy_image, *pixels.policy_video),
        sharp_budget=PixelBudget(*pixels.sharp, *pixels.sharp),
        text_tokens=config.prompts.text_tokens,
        frames=entry.frames,
        objects=entry.objects,
        audio_seconds=entry.audio_seconds,
        segmenter_side=config.sam2.side,
        max_aspect=config.prompts.max_aspect,
        grounder=None if other is None else (other.tokenizer, Sizes.of(other.thinker)),
    )


def families(
    config: ConfigDict,
    tokenizer: PreTrainedTokenizerBase | None,
    thinker: ThinkerConfig | None,
    example: Callable[[ConfigDict, str], Example] = example_of,
    example_config: Callable[..., Any] = example_config,
    share: Share = ALL,
) -> list[Family]:
    """The tasks of the mixture, their datasets opened.

    Args:
      share: share of every batch that this process loads.

    Raises:
      InputError: a missing dataset, naming the setting; an unknown task; a batch without prompts, or one that cannot be
        split into its parts.
    """
    if not config.data:
        raise InputError("data: names no task; see settings.task")
    mixture = []
    for name, entry in config.data.items():
        if not entry.weight:
            continue
        clip_example = example(config, name)
        transform = functools.partial(clip_example.transform, config=example_config(config, name, tokenizer, thinker))
        size, rest = divmod(entry.batch_size, share.count)
        if rest or not size:
            alternatives = sorted({size * share.count, (size + 1) * share.count} - {0})
            raise InputError(
                f"data.{name}.batch_size: {entry.batch_size} prompts do not divide over mesh.slice x mesh.data x "
                f"mesh.fsdp = {share.count}; take {' or '.join(map(str, alternatives))}, or more of mesh.tensor"
            )
        learned = round(entry.batch_size * entry.keep)
        if config.objective == "grpo" and learned % share.count:
            raise InputError(
                f"data.{name}.keep: {learned} of {entry.batch_size} prompts do not divide over mesh.slice x mesh.data "
                f"x mesh.fsdp = {share.count}"
            )
        readers, measured = _opened(config, name)
        family = Family(
            name,
            readers,
            size * len(share.parts),
            section(Task, entry),
            transform,
            entry.weight,
            entry.one_per_clip,
            clip_example.clips,
        )
        if entry.order != "shuffled":
            order = difficulty.order(entry.order, family.readers, items(family), measured, f"data.{name}.order")
            family = dataclasses.replace(family, order=order)
        mixture.append(family)
    return mixture


def pipeline_config(config: ConfigDict, share: Share = ALL) -> PipelineConfig:
    return PipelineConfig(
        **vars(section(Loader, config.loader)),
        seed=config.seed,
        shard_index=share.parts[0],
        shard_count=share.count,
        parts=share.parts,
    )
