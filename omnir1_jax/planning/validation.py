"""What a run computes between its steps where `validate.every` asks for it: the programs of an evaluation, lowered."""

import dataclasses
import functools
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
from omnir1_jax.inference.tasks import Options
from omnir1_jax.parallel import batch_parts, batch_sharding, replicated
from omnir1_jax.planning import lowering
from omnir1_jax.planning.abstract import Program

STAGE = "validate"


def lower(program: Program, config: ConfigDict, name: str, mesh: Mesh) -> Iterator[jax.stages.Lowered]:
    """The answers of both systems, and the segmenter's masks of clips no longer than those of training.

    They compute with the trained weights as a copy in the dtype of the frozen ones.
    """
    task, batch, parts = program.tasks[name], program.batches[name], batch_parts(mesh)
    rows, spread = -(-config.validate.batch_size // parts) * parts, batch_sharding(mesh)
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
    greedy = dataclasses.replace(program.step.sampling, temperature=0.0)
    step = dataclasses.replace(program.step, group=1, lora=None, sampling=greedy)
    key = ShapeDtypeStruct(given.key.shape, given.key.dtype, sharding=replicated(mesh))
    fixed: tuple[Any, ...] = (program.models, step, eval_config)
    with jax.set_mesh(mesh):
        yield run.ANSWER.lower(*fixed, policy, given.frozen, query, key)
        if task.grounds and program.models.segmenter is not None:
            found = jax.eval_shape(functools.partial(answer, *fixed), policy, given.frozen, query, key)
            prompts, side, long = resized(found.prompts), config.sam2.side, length(config.data[name].frames)
            clips, valid = shape(jnp.uint8, long, side, side, 3), shape(bool, long)
            yield run.SEGMENT.lower(
                program.models.segmenter, given.frozen.segmenter, clips, valid, query.original, prompts
            )
