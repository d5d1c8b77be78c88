"""The programs of a validation (`validate.every`), lowered, and their seconds."""

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

from omnir1_jax.inference import answer, run
from omnir1_jax.inference.answer import EvalConfig, Query, slots
from omnir1_jax.inference.identity import padded_batch_size
from omnir1_jax.inference.samples import length
from omnir1_jax.inference.tasks import BENCHMARKS, HELD_OUT_CLIPS, Options
from omnir1_jax.parallel import batch_sharding, replicated
from omnir1_jax.planning import lowering, step
from omnir1_jax.planning.abstract import Program
from omnir1_jax.planning.operations import Assumptions
from omnir1_jax.planning.step import Rollout

STAGE = "validate"


def lower(program: Program, config: ConfigDict, name: str, mesh: Mesh) -> Iterator[jax.stages.Lowered]:
    """The programs of the answers, and of the segmenter's masks of clips no longer than those of training.

    `run.CONCLUDE`, which only selects, is left out. They use a copy of the trained weights in the frozen ones' dtype.
    """
    task, batch = program.tasks[name], program.batches[name]
    rows, sharding = padded_batch_size(mesh, config.validate.batch_size), batch_sharding(mesh)
    shape = lambda kind, *dims: ShapeDtypeStruct((rows, *dims), kind, sharding=sharding)
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
    shapes = lowering.arguments(program, name, mesh)
    policy = {**shapes.frozen.encoders, "text": shapes.frozen.reference}
    key = ShapeDtypeStruct(shapes.key.shape, shapes.key.dtype, sharding=replicated(mesh))
    models, step_config = program.models, answering(program).step
    outputs = lambda function, *arguments: resized(jax.eval_shape(function, *arguments))
    with jax.set_mesh(mesh):
        respond_arguments = policy, query.policy, query.number, key
        yield run.RESPOND.lower(models, step_config, *respond_arguments)
        if not task.grounds:
            return
        completions = outputs(functools.partial(answer.respond, models, step_config), *respond_arguments)
        read_arguments = shapes.frozen, query, completions
        yield run.READ.lower(step_config, task, *read_arguments)
        reading = outputs(functools.partial(answer.read, step_config, task), *read_arguments)
        ground_arguments = shapes.frozen, query.sharp, reading.requests
        yield run.GROUND.lower(models, slots(eval_config), *ground_arguments)
        if models.segmenter is not None:
            boxes = outputs(functools.partial(answer.ground, models, slots(eval_config)), *ground_arguments)
            conclude = functools.partial(answer.conclude, step_config, eval_config)
            prompts = outputs(conclude, query, completions, reading, boxes).prompts
            side, frame_count = config.sam2.side, length(config.data[name].frames)
            clips, valid = shape(jnp.uint8, frame_count, side, side, 3), shape(bool, frame_count)
            yield run.SEGMENT.lower(models.segmenter, shapes.frozen.segmenter, clips, valid, query.original, prompts)


def answering(program: Program) -> Program:
    """The run's program with the step config of an evaluation: one greedy answer per prompt."""
    greedy = dataclasses.replace(program.step.sampling, temperature=0.0)
    return program._replace(step=dataclasses.replace(program.step, group=1, lora=None, sampling=greedy))


def assumptions(program: Program, config: ConfigDict, name: str, rollout: Rollout) -> Assumptions:
    """Trips of the loops of both programs.

    Args:
      program: of `answering`. rollout: trips of an answer, with as many objects as a training target has.
    """
    assumed = step.assumptions(program, rollout)
    # The segmenter tracks an answer's objects one after another.
    trips = {step.OBJECTS: rollout.objects, step.TRACKED: length(config.data[name].frames) - 1}
    return dataclasses.replace(assumed, trips=assumed.trips | trips)


def seconds(config: ConfigDict, name: str, mesh: Mesh, batch: float) -> dict[str, Any]:
    """Seconds that validations of a task add to a run, by roofline, without reading clips, scoring and other tasks.

    Args:
      batch: seconds of one of its batches.

    Returns:
      items: None if only the dataset has their number; then there are only the seconds of a batch.
      seconds: of a validation. seconds_per_step: its share of each of `validate.every` steps; 0 without it.
      times: number of validations in a run.
    """
    settings, rows = config.validate, padded_batch_size(mesh, config.validate.batch_size)
    published = BENCHMARKS.get(settings.benchmark)
    known = HELD_OUT_CLIPS if published is None else published.items.get(settings.split or published.split)
    items = settings.limit or known
    estimate = {"task": name, "batch_items": rows, "batch_seconds": batch, "items": items}
    if items is None:
        return estimate
    total, every = batch * math.ceil(items / rows), settings.every
    times = math.ceil(config.steps / every) + settings.at_start if every else 0
    return estimate | {"seconds": total, "seconds_per_step": total / every if every else 0.0, "times": times}
