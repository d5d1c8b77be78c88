"""From a config to a run: its state, what stays frozen, its data and its compiled step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from omnir1_jax.data.pipeline import Family
from omnir1_jax.data.stream import Prefetch, training_stream
from omnir1_jax.errors import InputError
from omnir1_jax.parallel import make_mesh
from omnir1_jax.rl import learn
from omnir1_jax.rl.learn import TrainState
from omnir1_jax.setup import data, models, optimizer
from omnir1_jax.setup.models import Loaded
from omnir1_jax.setup.objectives import OBJECTIVES

BATCH = ("data", "fsdp")  # mesh axes over which prompts are spread


class Run(NamedTuple):
    """All that the training loop touches.

    Attributes:
      step: `(state, frozen, batch, key) -> (state, metrics, rollout or None)`; `state` is donated.
      to_batch: the step's batch from the pipeline's family name and arrays.
      batch_sharding: of every array of a batch, along its first axis.
    """

    config: ConfigDict
    mesh: Mesh | None
    loaded: Loaded
    frozen: Any
    state: TrainState
    families: list[Family]
    step: Callable[[TrainState, Any, Any, Key[Array, ""]], tuple[TrainState, dict[str, Array], Any]]
    to_batch: Callable[[str, Any], Any]
    batch_sharding: NamedSharding | None


def mesh_of(config: ConfigDict) -> Mesh | None:
    """The mesh that the config asks for; None on a single device."""
    return make_mesh(config.mesh.to_dict()) if jax.device_count() > 1 else None


def keep_compiled(folder: epath.PathLike) -> None:
    """Compiled programs lie in `folder` from now on, unless a place for them was chosen already."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(folder))


def build(config: ConfigDict) -> Run:
    """Loads weights, opens the datasets and makes the step. Nothing is compiled yet.

    Raises:
      InputError: names the setting that will not do.
    """
    if config.objective not in OBJECTIVES:
        raise InputError(f"objective: {config.objective!r} is none of {', '.join(OBJECTIVES)}")
    objective, mesh = OBJECTIVES[config.objective], mesh_of(config)
    found = models.sizes(config)
    families = data.families(config, found.tokenizer, found.thinker, objective.examples, objective.example_config)
    if mesh is not None:
        check_batches(config, mesh)
    loaded = models.load(config, found, mesh)
    trained = models.trainable(config, loaded)
    rule = optimizer.make(config, trained)
    return Run(
        config=config,
        mesh=mesh,
        loaded=loaded,
        frozen=models.frozen(config, loaded),
        state=jax.jit(lambda tree: learn.init(tree, rule))(trained),
        families=families,
        step=objective.make_step(config, loaded, rule),
        to_batch=functools.partial(objective.to_batch, config),
        batch_sharding=None if mesh is None else NamedSharding(mesh, PartitionSpec(BATCH)),
    )


def check_batches(config: ConfigDict, mesh: Mesh) -> None:
    """InputError where the devices cannot share a task's prompts."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    for name, entry in config.data.items():
        if entry.batch_size % parts:
            raise InputError(
                f"data.{name}.batch_size: {entry.batch_size} prompts do not divide over mesh.data x mesh.fsdp = {parts}"
            )


def batches(run: Run) -> Prefetch:
    """The endless stream of the run's batches, on the device ahead of their use."""
    stream = training_stream(run.families, data.pipeline_config(run.config))
    return Prefetch(stream, run.batch_sharding, depth=run.config.loader.prefetch)


def step_key(config: ConfigDict) -> Key[Array, ""]:
    """The run's key; the step folds its own number in."""
    return jax.random.key(config.seed)


def parameters(tree: Any) -> int:
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(tree))
