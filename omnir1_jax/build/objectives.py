"""Objectives of training: their examples, batches and steps."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from omnir1_jax.build.data import Example, example_config, example_of, task_of
from omnir1_jax.build.models import LoadedModels, lora_config, step_config
from omnir1_jax.config.sections import Masks
from omnir1_jax.config.settings import section
from omnir1_jax.data.pipeline import ANY
from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni.config import ThinkerConfig
from omnir1_jax.rl.learn import TrainState
from omnir1_jax.rl.step import make_train_step
from omnir1_jax.supervised import mask_examples, masks, text
from omnir1_jax.tasks import TASKS, Task, targets
from omnir1_jax.toy import lessons


class Objective(NamedTuple):
    """One training objective.

    Attributes:
      examples: names that `data.<task>.example` may have.
      example: (config, task) -> the transform of its clips.
      example_config: (config, task, tokenizer, thinker's sizes) -> config of the transform.
      make_steps: (config, models and parameters, optimizer, shardings of the state or None) -> the step of each task.
      to_batch: (config, task, the pipeline's arrays) -> the step's batch.
    """

    examples: tuple[str, ...]
    example: Callable[[ConfigDict, str], Example]
    example_config: Callable[[ConfigDict, str, PreTrainedTokenizerBase, ThinkerConfig], Any]
    make_steps: Callable[
        [ConfigDict, LoadedModels, optax.GradientTransformation, TrainState | None], dict[str, Callable]
    ]
    to_batch: Callable[[ConfigDict, str, Mapping[str, Any]], Any]


def _grpo_steps(
    config: ConfigDict, loaded: LoadedModels, rule: optax.GradientTransformation, shardings: TrainState | None
) -> dict[str, Callable]:
    choices = step_config(config, loaded.models.thinker.config.tokens)

    @functools.cache  # two entries of one task share their program
    def make(task: Task, keep: float) -> Callable:
        task_config = dataclasses.replace(choices, keep=keep)
        return make_train_step(task, loaded.models, rule, task_config, config.step.mode, shardings)

    return {name: make(task_of(config, name), entry.keep) for name, entry in config.data.items()}


def _grpo_batch(config: ConfigDict, task: str, arrays: Mapping[str, Any]) -> Any:
    return task_of(config, task).to_batch(arrays)


def _one(make: Callable[..., Callable]) -> Callable[..., dict[str, Callable]]:
    """The same step for every task."""
    return lambda config, *rest: dict.fromkeys(config.data, make(config, *rest))


def _lesson(config: ConfigDict, name: str) -> Example:
    """A lesson, or a task's prompts with their target texts."""
    entry = config.data[name]
    if entry.example in lessons.EXAMPLES:
        return Example(lessons.EXAMPLES[entry.example], entry.family or name)
    task = task_of(config, name)
    if task.target is None:
        raise InputError(f"data.{name}.family: {task.name} has no target texts to train on; see tasks.Task.target")
    return Example(task.supervised, task.clips or ANY)


def _sft_config(
    config: ConfigDict, task: str, tokenizer: PreTrainedTokenizerBase, thinker: ThinkerConfig
) -> targets.TargetConfig:
    base, entry = example_config(config, task, tokenizer, thinker), config.data[task]
    fields = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    return targets.TargetConfig(
        **fields,
        targets=entry.targets or config.sft.targets,
        target_tokens=entry.target_tokens or config.sft.target_tokens,
        keyframes=config.step.keyframes,
    )


def _sft_step(
    config: ConfigDict, loaded: LoadedModels, rule: optax.GradientTransformation, shardings: TrainState | None
) -> Callable:
    choices = text.SftConfig(config.sft.encoders, lora_config(config.lora), config.step.score_chunk)
    return text.make_sft_step(loaded.models, rule, choices, shardings)


def _mask_example(config: ConfigDict, name: str) -> Example:
    if task_of(config, name).name != "vos":
        raise InputError(f"data.{name}.family: objective 'masks' trains on clips with masks; take vos")
    return Example(mask_examples.masks, "vos")


def _mask_config(config: ConfigDict, task: str, *_: Any) -> mask_examples.MaskExampleConfig:
    entry = config.data[task]
    return mask_examples.MaskExampleConfig(config.sam2.side, entry.frames, entry.objects)


def _mask_step(
    config: ConfigDict, loaded: LoadedModels, rule: optax.GradientTransformation, shardings: TrainState | None
) -> Callable:
    step = masks.make_mask_step(loaded.models.segmenter.model, rule, section(Masks, config.masks), shardings)
    return lambda state, frozen, batch, key: step(state, frozen, batch, jax.random.fold_in(key, state.step))


OBJECTIVES: dict[str, Objective] = {
    "grpo": Objective(tuple(TASKS), example_of, example_config, _grpo_steps, _grpo_batch),
    "sft": Objective(
        (*TASKS, *lessons.EXAMPLES),
        _lesson,
        _sft_config,
        _one(_sft_step),
        lambda config, task, arrays: text.to_batch(task, arrays),
    ),
    "masks": Objective(
        ("vos",),
        _mask_example,
        _mask_config,
        _one(_mask_step),
        lambda config, task, arrays: masks.to_batch(arrays),
    ),
}
