"""What samples of a policy earn at each prompt of a run's datasets: their mean and spread, as a list for the loader."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from omnir1_jax.build import data
from omnir1_jax.build import run as setup
from omnir1_jax.build.data import pipeline_config
from omnir1_jax.build.models import step_config
from omnir1_jax.build.run import Run, on_mesh
from omnir1_jax.data import pipeline
from omnir1_jax.data.stream import put
from omnir1_jax.errors import InputError
from omnir1_jax.rl.step import make_reward
from omnir1_jax.training import checkpointing, rollout_log


def build(config: ConfigDict, workdir: str = "", step: str = "") -> Run:
    """The run whose policy samples: before training, or with what a run of the same settings has learned.

    Raises:
      InputError: an invalid setting; several processes; no such checkpoint.
    """
    if config.objective != "grpo":
        raise InputError(f"objective: {config.objective!r} samples nothing; 'grpo' does")
    if jax.process_count() > 1:
        raise InputError("difficulty: one process only; it uses all of its devices")
    made = setup.build(config)
    if not workdir:
        return made
    chosen = checkpointing.named_step(workdir, step)
    trainable = checkpointing.load_trainable(workdir, made.state.trainable, chosen)
    return made._replace(state=dataclasses.replace(made.state, trainable=trainable))


def measured(made: Run, limit: int = 0) -> Iterator[dict[str, Any]]:
    """A line for each prompt of every task, every expression of a clip by itself; unreadable ones have none.

    Args:
      limit: most prompts of a task, drawn at random by the run's seed; 0: all.
    """
    config, choices = made.config, step_config(made.config, made.loaded.models.thinker.config.tokens)
    key, settings = setup.step_key(config, made.mesh), pipeline_config(config, data.share_of(made.mesh))
    for family in made.families:
        task = data.task_of(config, family.name)
        reward = on_mesh(made.mesh, make_reward(task, made.loaded.models, choices, config.step.mode))
        single = dataclasses.replace(family, one_per_clip=False)
        dataset = pipeline.training_dataset([single], settings)
        prompts, seen = len(pipeline.items(single)), set()
        wanted = min(prompts, limit or prompts)
        batches = pipeline.iterate(dataset, 0, settings)
        for number in range(-(-wanted // family.batch_size)):
            batch = put(next(batches), made.batch_sharding)
            asked = made.to_batch(family.name, batch.arrays)
            total = reward(made.state, made.frozen, asked, jax.random.fold_in(key, number))
            for name, row in zip(batch.sample_ids, rollout_log.fetch(total), strict=True):
                if name in seen or len(seen) == wanted:
                    continue  # in place of one that could not be read, or of the next epoch
                seen.add(name)
                row = np.asarray(row, np.float64)
                spread = 0.0 if (row == row[0]).all() else float(row.std())
                head = {"task": family.name, "sample_id": name, "mean": float(row.mean()), "spread": spread}
                yield head | {"rewards": [round(float(x), 6) for x in row]}
        batches.close()
