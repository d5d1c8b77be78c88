"""What a run computes between its steps where `validate.every` asks for it: the programs of an evaluation, lowered."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct
from jax.sharding import Mesh
from ml_collections import ConfigDict

from omnir1_jax.inference import run
from omnir1_jax.inference.answer import EvalConfig, Query, answer
from omnir1_jax.inference.samples import length
from omnir1_jax.inference.tasks import BENCHMARKS, HELD_OUT_CLIPS, Options
from omnir1_jax.parallel import batch_parts, batch_sharding, replicated
from omnir1_jax.planning import lowering, step
from omnir1_jax.planning.abstract import Program
from omnir1_jax.planning.operations import Assumptions
from omnir1_jax.planning.step import Rollout

STAGE = "validate"


def lower(program: Program, config: ConfigDict, name: str, mesh: Mesh) -> Iterator[jax.stages.Lowered]:
    """The answers of both systems, and the segmenter's masks of clips no longer than those of training.

    They compute with the trained weights as a copy in the dtype of the frozen ones.
    """
    task, batch = program.tasks[name], program.batches[name]
    rows, spread = batch_rows(config, mesh), batch_sharding(mesh)
    shape = lambda kind, *dims: ShapeDtypeStruct((rows, *dims), kind, sharding=spread)
    resized = lambda tree: jax.tree.map(lambda x: shape(x.dtype, *x.shape[1:]), tree)
    eval_config = EvalConfig(task, objects=Options("").objects)
    query = Query(policy=resized(batch.policy), number=shape(jnp.int32))
    if task.grounds:
        frames = batch.sharp.cells.shape[1]
        query = dataclasses.replace(
            query,
            sharp=resized(batch.sharp),
            frame_valid=shape(bool, frames),
            frame_index=shape(jnp.int32, frames),
            boxes=shape(jnp.float32, eval_config.objects, frames, 4),
            original=shape(jnp.int32, 2),
        )
    given = lowering.arguments(program, name, mesh)
    policy = {**given.frozen.encoders, "text": given.frozen.reference}
    key = ShapeDtypeStruct(given.key.shape, given.key.dtype, sharding=replicated(mesh))
    fixed: tuple[Any, ...] = (program.models, answering(program).step, eval_config)
    with jax.set_mesh(mesh):
        yield run.ANSWER.lower(*fixed, policy, given.frozen, query, key)
        if task.grounds and program.models.segmenter is not None:
            found = jax.eval_shape(functools.partial(answer, *fixed), policy, given.frozen, query, key)
            prompts, side, long = resized(found.prompts), config.sam2.side, length(config.data[name].frames)
            clips, valid = shape(jnp.uint8, long, side, side, 3), shape(bool, long)
            yield run.SEGMENT.lower(
                program.models.segmenter, given.frozen.segmenter, clips, valid, query.original, prompts
            )


def batch_rows(config: ConfigDict, mesh: Mesh) -> int:
    """Items at a time: `validate.batch_size`, rounded up to what the devices share."""
    parts = batch_parts(mesh)
    return -(-config.validate.batch_size // parts) * parts


def answering(program: Program) -> Program:
    """The run's program with the step's choices as an evaluation makes them: one greedy answer to each prompt."""
    greedy = dataclasses.replace(program.step.sampling, temperature=0.0)
    return program._replace(step=dataclasses.replace(program.step, group=1, lora=None, sampling=greedy))


def assumptions(program: Program, config: ConfigDict, name: str, rollout: Rollout) -> Assumptions:
    """Trips of the loops of both programs.

    Args:
      program: of `answering`. rollout: how far an answer of it goes, with as many objects as a target of training has.
    """
    assumed = step.assumptions(program, rollout)
    # The segmenter follows an answer's objects one after another.
    trips = {step.OBJECTS: rollout.objects, step.TRACKED: length(config.data[name].frames) - 1}
    return dataclasses.replace(assumed, trips=assumed.trips | trips)


def seconds(config: ConfigDict, name: str, mesh: Mesh, batch: float) -> dict[str, Any]:
    """What validations of a task add to a run, by roofline; reading clips, scoring and other tasks are not in it.

    Args:
      batch: seconds of one of its batches.

    Returns:
      items: None where only the dataset tells how many there are; then there are seconds of a batch alone.
      seconds: of a validation. seconds_per_step: of `validate.every` steps each carries so much; 0 without it.
      times: how often the run validates.
    """
    settings, rows = config.validate, batch_rows(config, mesh)
    published = BENCHMARKS.get(settings.benchmark)
    known = HELD_OUT_CLIPS if published is None else published.items.get(settings.split or published.split)
    items = settings.limit or known
    estimate = {"task": name, "batch_items": rows, "batch_seconds": batch, "items": items}
    if items is None:
        return estimate
    whole, every = batch * math.ceil(items / rows), settings.every
    times = math.ceil(config.steps / every) + settings.at_start if every else 0
    return estimate | {"seconds": whole, "seconds_per_step": whole / every if every else 0.0, "times": times}
