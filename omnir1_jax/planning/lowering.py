"""Lowering a planned step: its arguments as shapes, with shardings where there is a mesh."""

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
    """Of `train_step`, as shapes."""

    state: Any
    frozen: Any
    batch: Any
    key: Any


def fixed(program: Program, task: str) -> tuple[Any, ...]:
    """What a step is made of, before its arguments."""
    choices = dataclasses.replace(program.step, keep=program.keep[task])
    return program.tasks[task], program.models, program.optimizer, choices


def arguments(program: Program, task: str, mesh: Mesh | None = None) -> Arguments:
    """Shapes on one device, or with their shardings on a mesh."""
    state = jax.eval_shape(lambda tree: learn.init(tree, program.optimizer), nn.unbox(program.trainable))
    key = jax.eval_shape(lambda: jax.random.key(0))
    found = Arguments(state, nn.unbox(program.frozen), program.batches[task], key)
    if mesh is None:
        return found
    everywhere, rows = replicated(mesh), batch_sharding(mesh)
    placed = Arguments(
        train_shardings(program, mesh),
        tree_shardings(mesh, program.frozen),
        jax.tree.map(lambda _: rows, found.batch),
        everywhere,
    )
    return jax.tree.map(lambda x, sharding: ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), found, placed)


def train_shardings(program: Program, mesh: Mesh) -> TrainState:
    """Of the state, step to step."""
    return learn.shardings(mesh, program.trainable, program.optimizer)


def lower(program: Program, task: str, mesh: Mesh | None = None) -> jax.stages.Lowered:
    """The step lowered for the default device, or for a mesh that may be one of a topology only. Allocates nothing."""
    shardings = None if mesh is None else train_shardings(program, mesh)
    step: Any = make_train_step(*fixed(program, task), shardings=shardings)
    if mesh is None:
        return step.lower(*arguments(program, task))
    given = arguments(program, task, mesh)
    with jax.set_mesh(mesh):
        return step.lower(*given)


def lower_stages(
    program: Program, task: str, mesh: Mesh, names: Sequence[str]
) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """Some stages of the step, each lowered by itself: far less to compile than all of it.

    What one stage hands to the next is laid out as a batch is.

    Raises:
      InputError: no such stage.
    """
    for name in names:
        if name not in Stages._fields:
            raise InputError(f"--stages: {name!r} is none of {', '.join(Stages._fields)}")
    given = arguments(program, task, mesh)
    state, frozen, batch, key = given
    stages = make_stages(*fixed(program, task))
    size, kept = jax.tree.leaves(batch)[0].shape[0], train_shardings(program, mesh)
    everywhere, rows = replicated(mesh), batch_sharding(mesh)

    def shapes(stage, *operands):
        place = lambda x: rows if x.ndim and x.shape[0] == size else everywhere
        shape = lambda x: ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x))
        return jax.tree.map(shape, jax.eval_shape(stage, *operands))

    with jax.set_mesh(mesh):
        media = shapes(stages.encode, frozen, batch)
        completions = shapes(stages.sample, state, frozen, batch, media, key)
        reading = shapes(stages.read, frozen, batch, completions)
        found = shapes(stages.ground, frozen, batch, reading)
        masks = shapes(stages.segment, frozen, batch, reading, found)
        rewards = shapes(stages.reward, batch, completions, reading, found, masks)
        operands = Stages(
            encode=(frozen, batch),
            sample=(state, frozen, batch, media, key),
            read=(frozen, batch, completions),
            ground=(frozen, batch, reading),
            segment=(frozen, batch, reading, found),
            reward=(batch, completions, reading, found, masks),
            update=(state, frozen, batch, media, completions, rewards),
        )
        for name in names:
            how = dict(donate_argnums=0, out_shardings=(kept, None)) if name == "update" else {}
            yield name, jit(getattr(stages, name), mesh, **how).lower(*getattr(operands, name))
