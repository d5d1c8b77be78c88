"""From `--checkpoint` to models: one way for every command that uses what a run has trained.

A checkpoint is one of
    a work directory of a run: its config, and the newest good state of `checkpoints/` (or, without these, `weights/`)
    a directory of weights: Hugging Face layout, or what `convert import` made of one
    org/name: a model of the Hugging Face hub that `python -m omnir1_jax.fetch` has put into its cache
    "toy": the models of configs/toy.py
"""

import jax
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from omnir1_jax.build import models, valid
from omnir1_jax.build.models import LoadedModels
from omnir1_jax.config import settings, shipped
from omnir1_jax.errors import InputError
from omnir1_jax.files import hub
from omnir1_jax.training import checkpointing, export

TOY = "toy"
# Sections needed to read a run's state. Everything else may be set anew.
OF_THE_RUN = ("objective", "seed", "lora", "sft")
OF_THE_WEIGHTS = ("path", "tokenizer", "sizes")


def is_run(path: epath.PathLike) -> bool:
    """Whether a directory is a run's work directory with something trained in it."""
    path = epath.Path(path)
    trained = (path / checkpointing.FOLDER).is_dir() or (path / "weights").is_dir()
    return trained and (path / "config.json").is_file()


def config_of(checkpoint: str, config: ConfigDict | None = None) -> ConfigDict:
    """The config to use a checkpoint with: the run's own, or `config` with the run's models.

    Args:
      config: prompts, pixels and segmenter to use with weights without a run.

    Raises:
      InputError: no such checkpoint, weights without a config, or an invalid setting.
    """
    chosen = _config_of(hub.located(checkpoint, "--checkpoint"), config)
    valid.check(chosen, training=False)
    return chosen


def _config_of(checkpoint: str, config: ConfigDict | None) -> ConfigDict:
    path = epath.Path(checkpoint)
    if checkpoint == TOY and not path.is_dir():
        return shipped.config(TOY, f"--checkpoint {TOY}") if config is None else config
    if not path.is_dir():
        raise InputError(
            f"--checkpoint: {checkpoint} is not a directory; name a run's work directory, weights, or {TOY!r}"
        )
    if is_run(path):
        return _mixed(settings.read(path / "config.json"), config)
    if config is None and path.name == "weights" and is_run(path.parent):
        config = settings.read(path.parent / "config.json")
    chosen = settings.defaults() if config is None else config.copy_and_resolve_references()
    with chosen.unlocked():
        chosen.thinker.path, chosen.thinker.tokenizer, chosen.lora.rank = checkpoint, "", 0
    return chosen


def inputs(checkpoint: str, config: ConfigDict | None = None) -> dict[str, str]:
    """Directories that `load` reads, by the flag or setting that names them; for `folders.check_disjoint`.

    Raises:
      InputError: as in `config_of`.
    """
    chosen = config_of(checkpoint, config)
    named = {f"{name}.path": chosen[name].path for name in ("thinker", "sam2")}
    named["--checkpoint"] = "" if checkpoint == TOY else hub.located(checkpoint, "--checkpoint")
    return named | {"thinker.tokenizer": chosen.thinker.tokenizer}


def load(
    checkpoint: str, config: ConfigDict, mesh: Mesh | None = None, *, segmenter: bool = True, step: str = ""
) -> LoadedModels:
    """Reads models and, of a run, its trained parameters beside them.

    Args:
      config: result of `config_of`.
      segmenter: whether SAM 2 is read too; it always is if it was trained.
      step: which of a run's checkpoints: "best" (by validation), "last", or a number; empty: the newest good one.

    Raises:
      InputError: names the setting or file that is invalid.
    """
    path = epath.Path(hub.located(checkpoint, "--checkpoint"))
    state = is_run(path) and (path / checkpointing.FOLDER).is_dir()
    if step and not state:
        raise InputError(f"--step: {checkpoint} is not a work directory with checkpoints, so that there is no {step!r}")
    chosen = checkpointing.named_step(path, step)
    if is_run(path) and not state:
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.thinker.path, config.thinker.tokenizer, config.lora.rank = str(path / "weights"), "", 0
    sizes = models.sizes(config)
    if not segmenter and config.objective != "masks":
        sizes = sizes._replace(sam2=None)
    loaded = models.load(config, sizes, mesh)
    if not state:
        return loaded
    like = (
        jax.eval_shape(lambda: models.trainable(config, loaded)) if mesh is None else models.trainable(config, loaded)
    )
    number, trainable = checkpointing.read_trainable(path, like, chosen)
    if mesh is not None and config.lora.rank:  # drawn for one device, beside weights that are spread
        trainable = jax.device_put(trainable, NamedSharding(mesh, PartitionSpec()))
    return loaded._replace(trainable=trainable, step=number)


def in_place(config: ConfigDict, loaded: LoadedModels) -> LoadedModels:
    """The models with everything trained in them, adapters merged."""
    trainable = loaded.trainable
    if trainable is None:
        return loaded
    if config.objective == "masks":
        cast = jax.tree.map(lambda a, b: a.astype(b.dtype), trainable, loaded.segmenter_params)
        return loaded._replace(segmenter_params=cast)
    return loaded._replace(params=export.merged(config, loaded, trainable))


def _mixed(run_config: ConfigDict, chosen: ConfigDict | None) -> ConfigDict:
    """The run's config, or another one about the run's models."""
    if chosen is None:
        return run_config
    mixed = chosen.copy_and_resolve_references()
    with mixed.unlocked():
        for name in OF_THE_RUN:
            mixed[name] = run_config[name]
        for name in OF_THE_WEIGHTS:
            mixed.thinker[name] = run_config.thinker[name]
        if run_config.objective == "masks":
            mixed.sam2 = run_config.sam2
    return mixed
