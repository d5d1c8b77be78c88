"""What every setting may be, by its dotted name, and what settings may not be together.

Names that are registered somewhere are asked for there, when a config is checked. 0 means off where a comment in
`settings.py` says so.
"""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from ml_collections import ConfigDict

from omnir1_jax.data.clips import DecodeConfig
from omnir1_jax.data.registry import DATASETS
from omnir1_jax.errors import InputError
from omnir1_jax.models import remat, sam2
from omnir1_jax.models.attention import dispatch
from omnir1_jax.models.qwen_omni.config import ThinkerConfig
from omnir1_jax.parallel.mesh import AXES
from omnir1_jax.rl import grpo
from omnir1_jax.tasks import FAMILIES
from omnir1_jax.rewards import PRESETS, VosReward, preset
from omnir1_jax.rl.step import MODES
from omnir1_jax.build.models import DTYPES
from omnir1_jax.build.objectives import OBJECTIVES
from omnir1_jax.build.optimizer import RULES, SCHEDULES
from omnir1_jax.config import lookup
from omnir1_jax.systems import grounders
from omnir1_jax.systems.segmenters.sam2 import SEGMENTERS

MAX = 2**31 - 1  # what an int32 of a device holds
OPTIONS = ("name", "root", "split")  # of a dataset; the others are its reader's


@runtime_checkable
class Rule(Protocol):
    """What a value may be."""

    def fault(self, value: Any) -> str | None:
        """What is wrong with a value, as the end of a sentence that begins with it."""


class Whole(NamedTuple):
    """A whole number; `also`: one that means something else, as -1."""

    low: int = 0
    high: int = MAX
    multiple: int = 1
    also: int | None = None

    def fault(self, value: Any) -> str | None:
        good = type(value) is int and self.low <= value <= self.high and value % self.multiple == 0
        if good or (type(value) is int and value == self.also):
            return None
        kind = "whole number" if self.multiple == 1 else f"multiple of {self.multiple}"
        limits = f"from {self.low}" if self.high == MAX else f"from {self.low} to {self.high}"
        return f"is not a {kind} {limits}" + ("" if self.also is None else f", or {self.also}")


class Number(NamedTuple):
    """A finite number; `above`, `below`: without the limit itself."""

    low: float = 0.0
    high: float = math.inf
    above: bool = False
    below: bool = False

    def fault(self, value: Any) -> str | None:
        good = type(value) in (int, float) and math.isfinite(value) and self.low <= value <= self.high
        if good and not (self.above and value == self.low) and not (self.below and value == self.high):
            return None
        limits = [] if self.low == -math.inf else [f"{'above' if self.above else 'from'} {self.low:g}"]
        limits += [] if self.high == math.inf else [f"{'below' if self.below else 'to'} {self.high:g}"]
        return " ".join(["is not a finite number", *limits])


class Flag(NamedTuple):
    """True or False."""

    def fault(self, value: Any) -> str | None:
        return None if isinstance(value, bool) else "is neither True nor False"


class Text(NamedTuple):
    """A text."""

    empty: bool = True

    def fault(self, value: Any) -> str | None:
        if not isinstance(value, str):
            return "is not a text"
        return None if value or self.empty else "is empty"


class Choice(NamedTuple):
    """One of the names that are registered when the config is checked."""

    names: Callable[[], Iterable[str]]
    empty: bool = False

    def fault(self, value: Any) -> str | None:
        names = list(self.names())
        if isinstance(value, str) and (value in names or (self.empty and not value)):
            return None
        return f"is none of {', '.join(names)}" + (", nor empty" if self.empty else "")


class Named(NamedTuple):
    """A registered name, or an object of the user's own as module:object or file.py:object."""

    names: Callable[[], Iterable[str]]

    def fault(self, value: Any) -> str | None:
        names = list(self.names())
        if isinstance(value, str) and (value in names or lookup.is_path(value)):
            return None
        return f"is none of {', '.join(names)}, nor module:object or file.py:object"


class Each(NamedTuple):
    """A sequence of values of one rule."""

    rule: Any
    least: int = 0

    def fault(self, value: Any) -> str | None:
        if not isinstance(value, tuple | list):
            return "is not a sequence"
        if len(value) < self.least:
            return f"has fewer than {self.least} entries"
        return next((f"has an entry that {fault}" for entry in value if (fault := self.rule.fault(entry))), None)


class Rising(NamedTuple):
    """Two whole numbers, the second at least the first."""

    low: int = 0

    def fault(self, value: Any) -> str | None:
        rule = Whole(self.low)
        if isinstance(value, tuple | list) and len(value) == 2 and not any(map(rule.fault, value)):
            return None if value[0] <= value[1] else "falls: the least comes first"
        return f"is not two whole numbers from {self.low}"


class Fields(NamedTuple):
    """A section with some of a dataclass's fields, each of its type; counts are positive unless 0 is the default.

    Attributes:
      apart: fields that are no settings here.
    """

    kind: type
    apart: tuple[str, ...] = ()


def _typed(hint: Any, default: Any) -> Rule | Fields:
    """The rule of a dataclass's field."""
    if dataclasses.is_dataclass(hint):
        return Fields(hint)
    if typing.get_origin(hint) is tuple:
        return Each(_typed(typing.get_args(hint)[0], 0))
    if typing.get_origin(hint) is Literal:
        return Choice(lambda: typing.get_args(hint))
    if hint is int:
        return Whole(1 if default is dataclasses.MISSING else min(default, 0))
    return {float: Number(-math.inf), bool: Flag(), str: Text(empty=False)}[hint]


def _hinted(kind: type, field: str) -> Choice:
    return Choice(lambda: typing.get_args(typing.get_type_hints(kind)[field]))


_SWITCHES = ("dtype", "remat", "attention", "tokens")  # of ThinkerConfig, that have settings or a source of their own
_DTYPE, _AXIS, _SHARE, _PROMPT = Choice(lambda: DTYPES), Whole(1, also=-1), Number(0, 1), Text(empty=False)

RULES_OF: dict[str, Rule | Fields] = {
    "name": Text(),
    "objective": Choice(lambda: OBJECTIVES),
    "seed": Whole(),
    "steps": Whole(1),
    "thinker.path": Text(),
    "thinker.tokenizer": Text(),
    "thinker.sizes": Fields(ThinkerConfig, apart=_SWITCHES),
    "thinker.dtype": _DTYPE,
    "thinker.param_dtype": _DTYPE,
    "thinker.remat": Choice(lambda: remat.POLICIES),
    "thinker.attention": Choice(lambda: dispatch.IMPLEMENTATIONS),
    "sam2.path": Text(),
    "sam2.sizes": Fields(sam2.Sam2Config),
    "sam2.side": Whole(64, multiple=64),
    "sam2.dtype": _hinted(sam2.Sam2Config, "dtype"),
    "sam2.memory_dtype": _hinted(sam2.Sam2Config, "memory_dtype"),
    "sam2.direction": _hinted(sam2.Sam2Config, "direction"),
    "sam2.object_chunk": Whole(1),
    "sam2.frame_chunk": Whole(1),
    "prompts.system": _PROMPT,
    "prompts.vos": _PROMPT,
    "prompts.refavs": _PROMPT,
    "prompts.refcocog": _PROMPT,
    "prompts.qa": _PROMPT,
    "prompts.grounding": _PROMPT,
    "prompts.text_tokens": Whole(1),
    "prompts.max_aspect": Number(1),
    "pixels.policy_image": Rising(1),
    "pixels.policy_video": Rising(1),
    "pixels.sharp": Rising(1),
    "data_root": Text(),
    "loader.threads": Whole(),
    "loader.workers": Whole(),
    "loader.prefetch": Whole(),
    "loader.max_bad_share": _SHARE,
    "step.mode": Choice(lambda: MODES),
    "step.group": Whole(1),
    "step.max_tokens": Whole(1),
    "step.temperature": Number(),
    "step.top_k": Whole(),
    "step.top_p": Number(0, 1, above=True),
    "step.grounding_tokens": Whole(1),
    "step.keyframes": Whole(1),
    "step.max_pieces": Whole(),
    "step.description_bytes": Whole(1),
    "step.completion_bytes": Whole(1),
    "step.grounding_bytes": Whole(1),
    "step.description_tokens": Whole(1),
    "step.updates": Whole(1),
    "step.score_chunk": Whole(),
    "step.score_lengths": Each(Whole(1)),
    "step.grounder": Named(lambda: grounders.GROUNDERS),
    "step.segmenter": Choice(lambda: SEGMENTERS),
    "grpo.advantage": Choice(lambda: grpo.ADVANTAGES),
    "grpo.ratio": Choice(lambda: grpo.RATIOS),
    "grpo.clip_low": _SHARE,
    "grpo.clip_high": Number(),
    "grpo.beta": Number(),
    "grpo.reduce": Choice(lambda: grpo.REDUCTIONS),
    "grpo.skip_flat_groups": Flag(),
    "reward.preset": Choice(lambda: PRESETS),
    "reward.terms": Fields(VosReward),
    "reward.bonus_range": Rising(),
    "optimizer.rule": Choice(lambda: RULES),
    "optimizer.learning_rate": Number(),
    "optimizer.schedule": Choice(lambda: SCHEDULES),
    "optimizer.warmup_steps": Whole(),
    "optimizer.final_share": _SHARE,
    "optimizer.b1": Number(0, 1, below=True),
    "optimizer.b2": Number(0, 1, below=True),
    "optimizer.eps": Number(above=True),
    "optimizer.weight_decay": Number(),
    "optimizer.clip_norm": Number(),
    "optimizer.accumulate": Whole(1),
    "optimizer.max_skipped": Whole(),
    "optimizer.freeze": Each(Text(empty=False)),
    "lora.rank": Whole(),
    "lora.alpha": Number(above=True),
    "lora.layers": Each(Text(empty=False), least=1),
    "sft.targets": Whole(1),
    "sft.target_tokens": Whole(1),
    "sft.towers": Flag(),
    "masks.prompts": Whole(1),
    "masks.jitter": Number(),
    "masks.piece": Whole(),
    "masks.focus": Number(),
    "masks.mask": Number(),
    "masks.remat": Flag(),
    **{f"mesh.{axis}": _AXIS for axis in AXES},
    "checkpoint.every": Whole(),
    "checkpoint.keep": Whole(1),
    "log.rollouts_every": Whole(),
    "log.pictures_every": Whole(),
    "log.pictures": Whole(),
    "log.tensorboard": Flag(),
}
TASK_RULES: dict[str, Rule] = {  # of `data.<task>`, without `example`, which is the objective's, and `datasets`
    "family": Choice(lambda: FAMILIES, empty=True),
    "batch_size": Whole(1),
    "weight": Number(),
    "frames": Whole(1),
    "objects": Whole(1),
    "sampling": _hinted(DecodeConfig, "sampling"),
    "sound": _hinted(DecodeConfig, "sound"),
    "audio_seconds": Number(),
    "target": _hinted(DecodeConfig, "target"),
    "one_per_clip": Flag(),
    "targets": Whole(),
    "target_tokens": Whole(),
}


def check(config: ConfigDict, *, training: bool = True) -> None:
    """InputError that names the first setting whose value is invalid.

    Args:
      training: also what settings may not be together in a training run.
    """
    for name, value, rule in _values(config):
        if fault := rule.fault(value):
            raise InputError(f"{name}: {' '.join(repr(value).split())} {fault}")
    for name, fault in _together(config) if training else ():
        raise InputError(f"{name}: {fault}")


def notes(config: ConfigDict) -> list[str]:
    """What a valid config does that its author may not expect, one line each."""
    reward = preset(config.reward.preset, **config.reward.terms.to_dict())
    if config.objective != "grpo" or not (reward.gated_by_segmentation and reward.segmentation <= 1e-6):
        return []
    silent = [name for name in ("saliency", "alignment", "mismatch") if getattr(reward, name)]
    return [
        f"reward.terms.segmentation: {reward.segmentation:g} also silences {', '.join(silent)} with preset "
        f"{config.reward.preset!r}, as in the authors' code; reward.preset=authors_released keeps them"
    ] * bool(silent)


def _values(config: ConfigDict) -> Iterator[tuple[str, Any, Rule]]:
    """Every setting by its dotted name, with its value and rule."""
    for name, rule in RULES_OF.items():
        section, _, key = name.rpartition(".")
        within = config[section] if section else config
        if not isinstance(within, ConfigDict):
            raise InputError(f"{section}: {within!r} is not a section of settings")
        if isinstance(rule, Fields):
            yield from _fields(name, within[key], rule)
        else:
            yield name, within[key], rule
    if not isinstance(config.data, ConfigDict):
        raise InputError(f"data: {config.data!r} is not a section of tasks")
    examples = OBJECTIVES[config.objective].examples
    for task, entry in config.data.items():
        if not isinstance(entry, ConfigDict) or not isinstance(entry.get("datasets"), ConfigDict):
            raise InputError(f"data.{task}: is not a task; see settings.task")
        for name, rule in TASK_RULES.items():
            yield f"data.{task}.{name}", entry[name], rule
        yield f"data.{task}.example", entry.example, Choice(lambda: examples, empty=True)
        for label, options in entry.datasets.items():
            yield from _dataset(f"data.{task}.datasets.{label}", options)


def _fields(name: str, section: Any, rule: Fields) -> Iterator[tuple[str, Any, Rule]]:
    """The settings of a section that are a dataclass's fields."""
    if not isinstance(section, ConfigDict | Mapping):
        raise InputError(f"{name}: {section!r} is not a section of settings")
    hints = typing.get_type_hints(rule.kind)
    fields = {field.name: field for field in dataclasses.fields(rule.kind) if field.name not in rule.apart}
    for key, value in section.items():
        if key not in fields:
            raise InputError(f"{name}.{key}: no such setting; there are {', '.join(fields)}")
        inner = _typed(hints[key], fields[key].default)
        if isinstance(inner, Fields):
            yield from _fields(f"{name}.{key}", value, inner)
        else:
            yield f"{name}.{key}", value, inner


def _dataset(name: str, options: Any) -> Iterator[tuple[str, Any, Rule]]:
    """A dataset's settings; the types of its reader's own options are those of the reader's arguments."""
    if not isinstance(options, ConfigDict) or any(key not in options for key in OPTIONS):
        raise InputError(f"{name}: is not a dataset with name, root and split; see settings.datasets")
    yield f"{name}.name", options.name, Choice(lambda: DATASETS)
    yield f"{name}.root", options.root, Text()
    yield f"{name}.split", options.split, Text()
    arguments = inspect.signature(DATASETS[options.name]).parameters
    hints = typing.get_type_hints(DATASETS[options.name])
    for key, value in options.items():
        if key in OPTIONS:
            continue
        if key not in arguments:
            known = ", ".join(sorted({*OPTIONS, *arguments}))
            raise InputError(f"{name}.{key}: no such option of {options.name}; there are {known}")
        kinds = typing.get_args(hints[key]) if isinstance(hints[key], types.UnionType) else (hints[key],)
        yield f"{name}.{key}", value, _OneOf(kinds)


class _OneOf(NamedTuple):
    """A value of one of these types; those that are no plain JSON are the reader's to judge."""

    kinds: tuple[Any, ...]

    def fault(self, value: Any) -> str | None:
        plain = {int: Whole(), bool: Flag(), str: Text()}
        faults = [plain[kind].fault(value) for kind in self.kinds if kind in plain]
        return faults[0] if faults and all(faults) and value is not None else None


def _together(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """What is wrong with settings that are valid by themselves: (setting, fault)."""
    if config.data and not any(entry.weight for entry in config.data.values()):
        yield f"data.{next(iter(config.data))}.weight", "every task has weight 0; give one of them a share of the steps"
    if config.objective == "sft" and config.sft.towers and config.lora.rank:
        yield "sft.towers", "trains encoders and decoder themselves, so lora.rank has to be 0"
    if config.objective != "grpo":
        return
    if config.step.group < 2:
        yield "step.group", "1 completion has none to be compared with, only the KL term would train; give 2 or more"
    if not config.step.temperature:
        yield "step.temperature", "0 gives all completions of a group one text, only the KL term would train"
    reward = preset(config.reward.preset, **config.reward.terms.to_dict())
    for task, entry in config.data.items():
        kind = entry.example or entry.family or task
        if kind == "vos" and reward.segmentation and not (config.sam2.path or config.sam2.sizes):
            yield "sam2.path", f"names no segmenter, whose masks the reward of data.{task} needs; set it to the weights"
        if kind == "refavs" and not (entry.audio_seconds and entry.sound == "required"):
            yield f"data.{task}.audio_seconds", "the task is about sound: give seconds, and sound='required'"
