"""The two systems of an evaluation, from a checkpoint or from loaded models."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from omnir1_jax.build import models
from omnir1_jax.build.models import LoadedModels
from omnir1_jax.build.run import mesh_of
from omnir1_jax.config import lookup
from omnir1_jax.errors import InputError
from omnir1_jax.inference import from_checkpoint
from omnir1_jax.models.qwen_omni.config import ThinkerConfig
from omnir1_jax.parallel import replicate
from omnir1_jax.rl.config import Frozen, Models, StepConfig
from omnir1_jax.systems import grounders
from omnir1_jax.systems.grounders.thinker import ThinkerParams
from omnir1_jax.training import checkpointing

SYSTEM2 = ("self", "frozen", "oracle", "file")


class Systems(NamedTuple):
    """Models, parameters and config of both systems.

    Attributes:
      policy: the thinker's parameters as System 1.
      frozen: the parameters of System 2 and of the segmenter, and the tokenizer's tables.
      step: step config with groups of 1 and System 1's decoding.
    """

    config: ConfigDict
    mesh: Mesh | None
    models: Models
    tokenizer: PreTrainedTokenizerBase
    thinker: ThinkerConfig
    policy: Mapping[str, Any]
    frozen: Frozen
    step: StepConfig


def systems(
    config: ConfigDict,
    policy: LoadedModels,
    grounder: LoadedModels | None = None,
    mesh: Mesh | None = None,
    *,
    temperature: float = 0.0,
    max_tokens: int = 0,
    frozen: Frozen | None = None,
) -> Systems:
    """System 1 with the thinker of `policy`, System 2 with that of `grounder` (None: the same).

    Args:
      policy: models for System 1; also gives the tokenizer and the segmenter.
      temperature: temperature of System 1; 0 is greedy.
      max_tokens: maximum length of System 1's answer; 0 for the config's.
      frozen: System 2's parameters and tables, in place of `grounder`.
    """
    thinker = policy.models.thinker.config
    step = models.step_config(config, thinker.tokens)
    sampling = dataclasses.replace(
        step.sampling, temperature=temperature, max_tokens=max_tokens or step.sampling.max_tokens
    )
    step = dataclasses.replace(step, group=1, sampling=sampling, lora=None)
    if frozen is None:
        frozen = models.frozen(config, policy if grounder is None else policy._replace(params=grounder.params))
    return Systems(config, mesh, policy.models, policy.tokenizer, thinker, policy.params, frozen, step)


def load_systems(
    checkpoint: str,
    config: ConfigDict | None = None,
    system2: str = "self",
    *,
    temperature: float = 0.0,
    max_tokens: int = 0,
    step: str = "",
) -> Systems:
    """Reads the weights of both systems.

    Args:
      checkpoint: see `omnir1_jax.inference.from_checkpoint`.
      config: None takes the checkpoint's own.
      system2: "self": the checkpoint grounds too; "frozen": a run's weights from before training, or those that the
        config names; "oracle" and "file": ground truth boxes, or another model's, so nothing more is loaded;
        NAME:SETTINGS, module:object, file.py:object: another grounder (see `systems.grounders`).
      step: see `from_checkpoint.load`.

    Raises:
      InputError: a missing checkpoint, or one of a segmenter alone.
    """
    check(system2, SYSTEM2)  # errors show before anything is computed
    chosen = from_checkpoint.config_of(checkpoint, config)
    if chosen.objective == "masks":
        raise InputError(
            f"--checkpoint: {checkpoint} trained a segmenter; give the thinker's weights, and these with "
            f"--config=FILE --config.sam2.path={checkpoint}/weights"
        )
    mesh = mesh_of(chosen)
    loaded = from_checkpoint.load(checkpoint, chosen, mesh, step=step)
    policy, grounder = from_checkpoint.in_place(chosen, loaded), None
    if system2 == "frozen":
        if from_checkpoint.is_run(checkpoint):
            base, is_shared = chosen, loaded.trainable is not None
        else:
            base, is_shared = config, config is None or config.thinker.path == chosen.thinker.path
        grounder = loaded if is_shared else models.load(base, models.sizes(base)._replace(sam2=None), mesh)
    return systems(chosen, policy, grounder, mesh, temperature=temperature, max_tokens=max_tokens)


def check(system2: str, names: Sequence[str] = ("self",)) -> str:
    """Checks the name of a System 2: one of `names`, or a user-defined grounder.

    Raises:
      InputError: another name, or one that cannot be loaded.
    """
    if lookup.is_path(system2):
        grounders.make(system2, setting="--system2")
    elif system2 not in names:
        choices = ", ".join((*names, "NAME:SETTINGS", "module:object", "file.py:object"))
        raise InputError(f"--system2: {system2!r} is none of {choices}")
    return system2


def grounded_by(systems: Systems, system2: str) -> Systems:
    """The systems with another grounder where --system2 names one."""
    if not lookup.is_path(system2):
        return systems
    grounder = grounders.make(system2, setting="--system2")
    if grounder is systems.models.grounder:
        return systems
    params = grounder.load(systems.config)
    if systems.mesh is not None:
        params = replicate(params, systems.mesh)
    models = dataclasses.replace(systems.models, grounder=grounder)
    return systems._replace(models=models, frozen=dataclasses.replace(systems.frozen, grounder=params))


def fingerprint(systems: Systems) -> str:
    """A digest of the weights: an evaluation only resumes with the same."""
    grounder = systems.frozen.grounder
    if isinstance(grounder, ThinkerParams):
        grounder = grounder.vision, grounder.text
    trees = (systems.policy, systems.frozen.encoders, systems.frozen.reference, systems.frozen.segmenter, grounder)
    sums = np.asarray(checkpointing.word_sums(jax.tree.leaves(trees)))
    return hashlib.blake2b(sums.tobytes(), digest_size=8).hexdigest()
