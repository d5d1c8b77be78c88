"""From a config to a run: its state, what stays frozen, its data and its compiled step."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from omnir1_jax.build import data, facts, models, optimizer, valid
from omnir1_jax.build.models import LoadedModels
from omnir1_jax.build.objectives import OBJECTIVES
from omnir1_jax.data.pipeline import Family
from omnir1_jax.data.stream import Prefetch, training_stream
from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni.config import ThinkerConfig
from omnir1_jax.parallel import agree, batch_sharding, make_mesh, replicated
from omnir1_jax.rl import learn
from omnir1_jax.rl.learn import TrainState

OPENING = 1800.0  # seconds within which all processes have to open their datasets


class Run(NamedTuple):
    """Everything that the training loop uses.

    Attributes:
      steps: `(state, frozen, batch, key) -> (state, metrics, rollout or None)` of each task; `state` is donated.
      to_batch: the step's batch from the pipeline's family name and arrays.
      batch_sharding: sharding of every array of a batch, along its first axis.
    """

    config: ConfigDict
    mesh: Mesh | None
    loaded: LoadedModels
    frozen: Any
    state: TrainState
    families: list[Family]
    steps: dict[str, Callable[[TrainState, Any, Any, Key[Array, ""]], tuple[TrainState, dict[str, Array], Any]]]
    to_batch: Callable[[str, Any], Any]
    batch_sharding: NamedSharding | None


def mesh_of(config: ConfigDict) -> Mesh | None:
    """The mesh of the config; None on a single device."""
    return make_mesh(config.mesh.to_dict()) if jax.device_count() > 1 else None


def keep_compiled(folder: epath.PathLike) -> None:
    """Sets `folder` as the cache of compiled programs, unless one was set already."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(folder))


def build(config: ConfigDict) -> Run:
    """Loads weights, opens the datasets and makes the step. Nothing is compiled yet.

    Raises:
      InputError: names the setting that is invalid.
    """
    settings = valid.check(config)
    objective, mesh = OBJECTIVES[config.objective], mesh_of(config)
    sizes, share = models.sizes(config), data.share_of(mesh)
    for thinker_sizes in (sizes, sizes.grounder):
        if mesh is not None and thinker_sizes is not None and thinker_sizes.thinker is not None:
            check_heads(thinker_sizes.thinker, mesh)
    families = data.families(config, sizes.tokenizer, sizes.thinker, objective.example, objective.example_config, share)
    datasets = functools.partial(facts.of_data, config, sizes.tokenizer, families)
    agree.same(agree.joined(), "data", datasets, seconds=OPENING)
    axes = models.trained_axes(config, sizes)
    rule = optimizer.make(settings.optimizer, settings.steps * settings.step.updates, nn.unbox(axes))
    shardings = None if mesh is None else learn.shardings(mesh, axes, rule)
    loaded = models.load(config, sizes, mesh)

    steps = objective.make_steps(config, loaded, rule, shardings)

    def begin(params, segmenter_params):
        fresh = loaded._replace(params=params, segmenter_params=segmenter_params)
        return learn.init(models.trainable(config, fresh), rule)

    return Run(
        config=config,
        mesh=mesh,
        loaded=loaded,
        frozen=models.frozen(config, loaded, mesh),
        state=jax.jit(begin, out_shardings=shardings)(loaded.params, loaded.segmenter_params),
        families=families,
        steps={name: on_mesh(mesh, step) for name, step in steps.items()},
        to_batch=functools.partial(objective.to_batch, config),
        batch_sharding=None if mesh is None else batch_sharding(mesh),
    )


def check_heads(thinker: ThinkerConfig, mesh: Mesh) -> None:
    """InputError if the decoder's heads do not divide over `mesh.tensor`."""
    parts, text = mesh.shape["tensor"], thinker.text
    for count, name in ((text.num_kv_heads, "key heads"), (text.num_heads, "heads")):
        if count % parts:
            fitting = [n for n in range(1, count + 1) if math.gcd(text.num_kv_heads, text.num_heads) % n == 0]
            raise InputError(
                f"mesh.tensor: {parts} does not divide the decoder's {count} {name}; take "
                f"{' or '.join(map(str, fitting))}, and more of mesh.fsdp"
            )


def on_mesh(mesh: Mesh | None, step: Any) -> Any:
    """The step traced and run under `jax.set_mesh`, which the modules use to shard activations."""
    if mesh is None:
        return step

    @functools.wraps(step)
    def run(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return step(*args)

    def lower(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return step.lower(*args)

    if hasattr(step, "lower"):
        run.lower = lower  # type: ignore[attr-defined]
    return run


def batches(run: Run) -> Prefetch:
    """The endless stream of the run's batches, prefetched to the device."""
    stream = training_stream(run.families, data.pipeline_config(run.config, data.share_of(run.mesh)))
    return Prefetch(stream, run.batch_sharding, depth=run.config.loader.prefetch)


def step_key(config: ConfigDict, mesh: Mesh | None = None) -> Key[Array, ""]:
    """The run's key; the step folds in its number."""
    make = lambda: jax.random.key(config.seed)
    return make() if mesh is None else jax.jit(make, out_shardings=replicated(mesh))()
