"""Lowering a planned step: its arguments as shapes, with shardings on a mesh."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax import ShapeDtypeStruct
from jax.sharding import Mesh

from omnir1_jax.errors import InputError
from omnir1_jax.parallel import batch_sharding, jit, replicated, tree_shardings
from omnir1_jax.planning.abstract import Program
from omnir1_jax.rl import learn
from omnir1_jax.rl.learn import TrainState
from omnir1_jax.rl.step import Stages, make_stages, make_train_step


class Arguments(NamedTuple):
    """The arguments of `train_step`, as shapes."""

    state: Any
    frozen: Any
    batch: Any
    key: Any


def step_parts(program: Program, task: str) -> tuple[Any, ...]:
    """The static parts of a step: task, models, optimizer and step config."""
    choices = dataclasses.replace(program.step, keep=program.keep[task])
    return program.tasks[task], program.models, program.optimizer, choices


def arguments(program: Program, task: str, mesh: Mesh | None = None) -> Arguments:
    """Shapes on one device, or with their shardings on a mesh."""
    state = jax.eval_shape(lambda tree: learn.init(tree, program.optimizer), nn.unbox(program.trainable))
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = Arguments(state, nn.unbox(program.frozen), program.batches[task], key)
    if mesh is None:
        return shapes
    whole_mesh, rows = replicated(mesh), batch_sharding(mesh)
    shardings = Arguments(
        train_shardings(program, mesh),
        tree_shardings(mesh, program.frozen),
        jax.tree.map(lambda _: rows, shapes.batch),
        whole_mesh,
    )
    return jax.tree.map(lambda x, sharding: ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings)


def train_shardings(program: Program, mesh: Mesh) -> TrainState:
    """Shardings of the state, kept from step to step."""
    return learn.shardings(mesh, program.trainable, program.optimizer)


def lower(program: Program, task: str, mesh: Mesh | None = None) -> jax.stages.Lowered:
    """The step lowered for the default device, or for a mesh, also of a topology without devices. Allocates nothing."""
    shardings = None if mesh is None else train_shardings(program, mesh)
    step: Any = make_train_step(*step_parts(program, task), shardings=shardings)
    if mesh is None:
        return step.lower(*arguments(program, task))
    shapes = arguments(program, task, mesh)
    with jax.set_mesh(mesh):
        return step.lower(*shapes)


def lower_stages(
    program: Program, task: str, mesh: Mesh, names: Sequence[str]
) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """Some stages of the step, each lowered by itself: far less to compile than the full step.

    The stages' outputs are sharded like a batch.

    Raises:
      InputError: no such stage.
    """
    for name in names:
        if name not in Stages._fields:
            raise InputError(f"--stages: {name!r} is none of {', '.join(Stages._fields)}")
    step_shapes = arguments(program, task, mesh)
    state, frozen, batch, key = step_shapes
    stages = make_stages(*step_parts(program, task))
    size, state_shardings = jax.tree.leaves(batch)[0].shape[0], train_shardings(program, mesh)
    whole_mesh, rows = replicated(mesh), batch_sharding(mesh)

    def shapes(stage, *operands):
        sharding_of = lambda x: rows if x.ndim and x.shape[0] == size else whole_mesh
        shape = lambda x: ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_of(x))
        return jax.tree.map(shape, jax.eval_shape(stage, *operands))

    with jax.set_mesh(mesh):
        media = shapes(stages.encode, frozen, batch)
        completions = shapes(stages.sample, state, frozen, batch, media, key)
        reading = shapes(stages.read, frozen, batch, completions)
        grounding = shapes(stages.ground, frozen, batch, reading)
        masks = shapes(stages.segment, frozen, batch, reading, grounding)
        rewards = shapes(stages.reward, batch, completions, reading, grounding, masks)
        operands = Stages(
            encode=(frozen, batch),
            sample=(state, frozen, batch, media, key),
            read=(frozen, batch, completions),
            ground=(frozen, batch, reading),
            segment=(frozen, batch, reading, grounding),
            reward=(batch, completions, reading, grounding, masks),
            update=(state, frozen, batch, media, completions, rewards),
        )
        for name in names:
            options = dict(donate_argnums=0, out_shardings=(state_shardings, None)) if name == "update" else {}
            yield name, jit(getattr(stages, name), mesh, **options).lower(*getattr(operands, name))
