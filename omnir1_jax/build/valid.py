"""Whether a config is valid: its values by the rules of its sections, registered names, and combinations."""

import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from omnir1_jax import tasks
from omnir1_jax.build.objectives import OBJECTIVES
from omnir1_jax.config import lookup, schema
from omnir1_jax.config.schema import Choice, Fields, Flag, Rule, Text, Whole
from omnir1_jax.config.sections import Reward, Settings
from omnir1_jax.config.settings import section, typed
from omnir1_jax.data.registry import DATASETS
from omnir1_jax.errors import InputError
from omnir1_jax.models import sam2
from omnir1_jax.models.qwen_omni.config import ThinkerConfig
from omnir1_jax.rl import grpo, terms
from omnir1_jax.systems import grounders
from omnir1_jax.systems.segmenters import SEGMENTERS
from omnir1_jax.tasks import TASKS

OPTIONS = ("name", "root", "split")  # settings of a dataset; the others are its reader's
# Fields of ThinkerConfig that have settings or a source of their own.
SWITCHES = ("dtype", "remat", "attention", "tokens")


def check(config: ConfigDict, *, training: bool = True) -> Settings:
    """The settings, typed.

    Args:
      training: whether to check combinations of settings in a training run too.

    Raises:
      InputError: names the first setting whose value is invalid.
    """
    settings = typed(config)
    for name, value, rule in _registered(settings):
        schema.check(name, value, rule)
    for name, fault in _together(settings) if training else ():
        raise InputError(f"{name}: {fault}")
    return settings


def notes(config: ConfigDict) -> list[str]:
    """Warnings about a valid config, one line each."""
    reward = section(Reward, config.reward).weights()
    if config.objective != "grpo" or not (reward.gated_by_segmentation and reward.segmentation <= 1e-6):
        return []
    silent = [name for name in ("saliency", "alignment", "mismatch") if getattr(reward, name)]
    return [
        f"reward.terms.segmentation: {reward.segmentation:g} also silences {', '.join(silent)} with preset "
        f"{config.reward.preset!r}, as in the authors' code; reward.preset=authors_released keeps them"
    ] * bool(silent)


def _registered(settings: Settings) -> Iterator[tuple[str, Any, Rule]]:
    """Settings whose names and fields come from registries: (name, value, rule)."""
    yield "thinker.sizes", settings.thinker.sizes, Fields(ThinkerConfig, excluded=SWITCHES)
    yield "grounder.sizes", settings.grounder.sizes, Fields(ThinkerConfig, excluded=SWITCHES)
    yield "sam2.sizes", settings.sam2.sizes, Fields(sam2.Sam2Config)
    yield "step.grounder", settings.step.grounder, Choice(grounders.GROUNDERS, user_defined=True)
    yield "step.segmenter", settings.step.segmenter, Choice(SEGMENTERS, user_defined=True)
    for task, entry in settings.data.items():
        yield f"data.{task}.family", entry.family, Choice(TASKS, empty=True, user_defined=True)
        yield f"data.{task}.example", entry.example, Choice(OBJECTIVES[settings.objective].examples, empty=True)
        for label, options in entry.datasets.items():
            yield from _dataset(f"data.{task}.datasets.{label}", options)


def _dataset(name: str, options: Any) -> Iterator[tuple[str, Any, Rule]]:
    """A dataset's settings; the types of its reader's own options are those of the reader's arguments."""
    if not isinstance(options, Mapping) or any(key not in options for key in OPTIONS):
        raise InputError(f"{name}: is not a dataset with name, root and split; see settings.datasets")
    kind = options["name"]
    yield f"{name}.name", kind, Choice(DATASETS, user_defined=True)
    yield f"{name}.root", options["root"], Text()
    yield f"{name}.split", options["split"], Text()
    opener = lookup.function(kind, DATASETS, f"{name}.name")
    arguments, hints = inspect.signature(opener).parameters, typing.get_type_hints(opener)
    for key, value in options.items():
        if key in OPTIONS:
            continue
        if key not in arguments:
            accepted = ", ".join(sorted({*OPTIONS, *arguments}))
            raise InputError(f"{name}.{key}: no such option of {kind}; there are {accepted}")
        hint = hints.get(key)
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        yield f"{name}.{key}", value, _OneOf(kinds)


class _OneOf(NamedTuple):
    """A value of one of these types; types that are not plain JSON are checked by the reader."""

    kinds: tuple[Any, ...]

    def fault(self, value: Any) -> str | None:
        plain: dict[Any, Any] = {int: Whole(), bool: Flag(), str: Text()}
        faults = [plain[kind].fault(value) for kind in self.kinds if kind in plain]
        return faults[0] if faults and all(faults) and value is not None else None


def _together(settings: Settings) -> Iterator[tuple[str, str]]:
    """Invalid combinations of settings: (setting, fault)."""
    if settings.data and not any(entry.weight for entry in settings.data.values()):
        yield (
            f"data.{next(iter(settings.data))}.weight",
            "every task has weight 0; give one of them a share of the steps",
        )
    for name, entry in settings.data.items():
        if entry.order != "shuffled" and not entry.difficulty:
            yield f"data.{name}.order", f"{entry.order!r} needs a list, data.{name}.difficulty"
    if settings.objective == "sft" and settings.sft.encoders and settings.lora.rank:
        yield "sft.encoders", "trains encoders and decoder themselves, so lora.rank has to be 0"
    if settings.thinker.frozen != "float" and settings.objective != "masks" and not settings.lora.rank:
        yield (
            "thinker.frozen",
            f"{settings.thinker.frozen!r} weights cannot be trained themselves, so lora.rank has to be set",
        )
    if settings.objective != "grpo":
        if settings.loader.rest_after:
            yield "loader.rest_after", f"objective {settings.objective!r} has no groups of completions; set it to 0"
        return
    if settings.step.group < 2:
        yield "step.group", "1 completion has none to be compared with, only the KL term would train; give 2 or more"
    if not settings.step.temperature:
        yield "step.temperature", "0 gives all completions of a group one text, only the KL term would train"
    if settings.grpo.overlong > settings.step.max_tokens:
        yield (
            "grpo.overlong",
            f"{settings.grpo.overlong} tokens are more than step.max_tokens, {settings.step.max_tokens}",
        )
    for task, entry in settings.data.items():
        kept_prompts = entry.batch_size * entry.keep
        if abs(kept_prompts - round(kept_prompts)) > 1e-6 or not round(kept_prompts):
            yield f"data.{task}.keep", f"{entry.keep:g} of batch_size, {entry.batch_size}, is no whole number"
    for term in terms.load(settings.reward.extra):
        if term.host and settings.step.mode != "staged":
            yield "step.mode", f"{settings.step.mode!r} cannot hold {term.name} of reward.extra, which runs on the host"
    for name, registry in (("advantage", grpo.ADVANTAGES), ("loss", grpo.LOSSES)):
        lookup.function(getattr(settings.grpo, name), registry, f"grpo.{name}")
    reward = settings.reward.weights()
    for task, entry in settings.data.items():
        task_spec = tasks.get(entry.example or entry.family or task, f"data.{task}.family")
        if task_spec.segments and reward.segmentation and not (settings.sam2.path or settings.sam2.sizes):
            yield "sam2.path", f"names no segmenter, whose masks the reward of data.{task} needs; set it to the weights"
        if task_spec.needs_sound and not (entry.audio_seconds and entry.sound == "required"):
            yield f"data.{task}.audio_seconds", "the task is about sound: give seconds, and sound='required'"
