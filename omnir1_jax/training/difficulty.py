"""Rewards of a policy's samples at each prompt of a run's datasets: mean and spread, as a list for the loader."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from omnir1_jax.build import data, facts
from omnir1_jax.build import run as setup
from omnir1_jax.build.data import pipeline_config
from omnir1_jax.build.models import step_config
from omnir1_jax.build.run import Run, on_mesh
from omnir1_jax.data import difficulty, pipeline
from omnir1_jax.data.stream import put
from omnir1_jax.errors import InputError
from omnir1_jax.files import json_file, regular_file
from omnir1_jax.parallel import agree
from omnir1_jax.reporting.lines import write
from omnir1_jax.rl.step import make_reward
from omnir1_jax.training import checkpointing, rollout_log

# Settings that affect only the rounding of what is sampled. Dotted; a section covers what is below it.
MAY_DIFFER = (*checkpointing.MAY_DIFFER, "optimizer", "steps", "validate", "package", "jax", "jaxlib")
_KEYS = {"task", "sample_id", "mean", "spread", "rewards", "batch", "of"}


def build(config: ConfigDict, workdir: str = "", step: str = "") -> tuple[Run, str]:
    """The run whose policy samples, untrained or with the weights of a run of the same settings; its digest.

    Raises:
      InputError: an invalid setting; the processes differ; no such checkpoint.
    """
    if config.objective != "grpo":
        raise InputError(f"objective: {config.objective!r} samples nothing; 'grpo' does")
    settings_facts = facts.of_settings(config)
    agree.same(agree.joined(), "settings", lambda: settings_facts)
    run, policy = setup.build(config), ""
    if workdir:
        step_number = checkpointing.named_step(workdir, step)
        trainable = checkpointing.load_trainable(workdir, run.state.trainable, step_number)
        policy = f"{workdir} {step_number}"
        run = run._replace(state=dataclasses.replace(run.state, trainable=trainable))
    digested = {name: value for name, value in settings_facts.items() if not checkpointing.covers(MAY_DIFFER, name)}
    digested |= facts.of_data(config, run.loaded.tokenizer, run.families)
    return run, hashlib.sha256(json.dumps([policy, digested], sort_keys=True).encode()).hexdigest()[:12]


def complete(out: pathlib.Path, run: Run, digest: str, limit: int = 0) -> list[dict[str, Any]]:
    """All lines of a list; missing ones are measured and written batch by batch.

    Args:
      digest: of `build`, recorded in every line.

    Raises:
      InputError: `out` was not written by this function, or with another digest; the processes see different lists.
    """
    lines = _begun(out)
    agree.same(agree.joined(), "list", lambda: {"--out": [len(lines), *lines[-1:]]})
    if any(line["of"] != digest for line in lines):
        raise InputError(f"--out: {out} is the list of other settings, weights or data; name another file")
    is_first = jax.process_index() == 0
    if is_first:
        out.parent.mkdir(parents=True, exist_ok=True)
    with open(out if is_first else os.devnull, "ab", buffering=0) as file:
        if is_first:
            file.truncate(sum(map(len, map(_line, lines))))
        for batch in measured(run, limit, lines):
            batch = [line | {"of": digest} for line in batch]
            write(file, b"".join(map(_line, batch)))
            lines += batch
    return lines


def _line(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _begun(out: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a list, without a truncated last one."""
    if not out.exists():
        return []
    *rows, unfinished = regular_file.read_bytes(out, "--out").split(b"\n")
    try:
        lines = [json_file.parse_object(row, "") for row in rows]
    except InputError:
        lines = [{}]
    recognised = all(line.keys() == _KEYS and _line(line)[:-1] == row for line, row in zip(lines, rows))
    if not recognised or not unfinished.startswith(b'{"task": "'[: len(unfinished)]):
        raise InputError(f"--out: {out} was not written by this command; name another file")
    return lines


def measured(run: Run, limit: int = 0, listed: Sequence[Mapping[str, Any]] = ()) -> Iterator[list[dict[str, Any]]]:
    """The lines of each batch: one per prompt of every task, every expression of a clip by itself.

    Unreadable prompts have none. Every process computes and gets all lines.

    Args:
      limit: maximum prompts of a task, drawn at random by the run's seed; 0: all.
      listed: lines of an earlier call, from which this one continues.
    """
    config, choices = run.config, step_config(run.config, run.loaded.models.thinker.config.tokens)
    share = data.share_of(run.mesh)
    key, settings = setup.step_key(config, run.mesh), pipeline_config(config, share)
    for family in run.families:
        earlier = [line for line in listed if line["task"] == family.name]
        seen, first_batch = {line["sample_id"] for line in earlier}, max((line["batch"] for line in earlier), default=0)
        task = data.task_of(config, family.name)
        reward = on_mesh(run.mesh, make_reward(task, run.loaded.models, choices, config.step.mode, run.mesh))
        single = dataclasses.replace(family, one_per_clip=False, order=None)
        prompts = pipeline.items(single)
        count = min(len(prompts), limit or len(prompts))
        batches = pipeline.iterate(pipeline.training_dataset([single], settings), first_batch, settings)
        for batch_index in range(first_batch, -(-count // (family.batch_size // len(share.parts) * share.count))):
            if len(seen) >= count:
                break
            batch = put(next(batches), run.batch_sharding)
            inputs = run.to_batch(family.name, batch.arrays)
            total = reward(run.state, run.frozen, inputs, jax.random.fold_in(key, batch_index))
            rows = np.array([draw.clip for draw in batch.draws], np.int32), rollout_log.fetch(total)
            if jax.process_count() > 1:
                rows = multihost_utils.process_allgather(rows, tiled=True)
            lines = []
            for item, row in zip(*rows, strict=True):
                reader, (position,) = prompts[item]
                name = difficulty.prompt(family.readers[reader], position)
                if name in seen or len(seen) == count:
                    continue  # a replacement for an unreadable one, or of the next epoch
                seen.add(name)
                row = np.asarray(row, np.float64)
                spread = 0.0 if (row == row[0]).all() else float(row.std())
                line = {"task": family.name, "sample_id": name, "mean": float(row.mean()), "spread": spread}
                lines.append(line | {"rewards": [round(float(x), 6) for x in row], "batch": batch_index})
            yield lines
        batches.close()
