"""Lowering a planned step: its arguments as shapes, with shardings where there is a mesh."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax import ShapeDtypeStruct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omnir1_jax.parallel import state_shardings, tree_shardings
from omnir1_jax.planning.abstract import Program
from omnir1_jax.rl import learn
from omnir1_jax.rl.learn import TrainState
from omnir1_jax.rl.step import make_train_step


class Arguments(NamedTuple):
    """Of `train_step`, as shapes."""

    state: Any
    frozen: Any
    batch: Any
    key: Any


def arguments(program: Program, task: str, mesh: Mesh | None = None) -> Arguments:
    """Shapes on one device, or with their shardings on a mesh."""
    state = jax.eval_shape(lambda tree: learn.init(tree, program.optimizer), nn.unbox(program.trainable))
    key = jax.eval_shape(lambda: jax.random.key(0))
    found = Arguments(state, nn.unbox(program.frozen), program.batches[task], key)
    if mesh is None:
        return found
    whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    placed = Arguments(
        train_shardings(program, mesh),
        tree_shardings(mesh, program.frozen),
        jax.tree.map(lambda _: rows, found.batch),
        whole,
    )
    return jax.tree.map(lambda x, sharding: ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), found, placed)


def train_shardings(program: Program, mesh: Mesh) -> TrainState:
    """Of the state, step to step."""
    whole = NamedSharding(mesh, PartitionSpec())
    return TrainState(
        step=whole,
        trainable=tree_shardings(mesh, program.trainable),
        opt_state=state_shardings(mesh, program.trainable, program.optimizer),
        skipped=whole,
    )


def lower(program: Program, task: str, mesh: Mesh | None = None) -> jax.stages.Lowered:
    """The step lowered for the default device, or for a mesh that may be one of a topology only. Allocates nothing."""
    if mesh is None:
        return make_train_step(program.models, program.optimizer, program.step).lower(*arguments(program, task))
    step = make_train_step(program.models, program.optimizer, program.step, shardings=train_shardings(program, mesh))
    given = arguments(program, task, mesh)
    with jax.set_mesh(mesh):
        return step.lower(*given)
