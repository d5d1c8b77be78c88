"""Shared by the tasks: requests to System 2, counts of failures, the terms beside the accuracy."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from omnir1_jax.models.qwen_omni.sample import Completions
from omnir1_jax.rl import grpo
from omnir1_jax.rl.config import Frozen, Models, Rewards, StepConfig
from omnir1_jax.systems.frames import HighResFrames
from omnir1_jax.systems.grounders.protocol import GroundedBoxes, Requests
from omnir1_jax.text.rules import Failure


@runtime_checkable
class Grounded(Protocol):
    """System 2's results for a task, or their substitute in an evaluation.

    Attributes:
      boxes: System 2's boxes; None if they come from elsewhere.
    """

    boxes: GroundedBoxes | None


def find(models: Models, frozen: Frozen, frames: HighResFrames, requests: Requests, slots: int) -> GroundedBoxes:
    """Up to `slots` boxes for each request, by the run's grounder."""
    return models.grounder.ground(frozen.grounder_params(), frames, requests, slots)


def count(flags: Bool[Array, "b g *s"]) -> Int[Array, "b g"]:
    """How many flags of each completion are set."""
    return jnp.sum(flags, axis=tuple(range(2, flags.ndim)), dtype=jnp.int32)


def kinds(
    name: str, failure: Int[Array, "b g *s"], mask: Bool[Array, "b g *s"] | bool = True
) -> dict[str, Int[Array, "b g"]]:
    """How often each kind of failure occurs in each completion, where `mask` is true."""
    return {f"{name}/{kind.name.lower()}": count((failure == kind) & mask) for kind in Failure if kind != Failure.OK}


def unended(completions: Completions, eos: tuple[int, ...]) -> Bool[Array, "b g"]:
    """Completions that filled the buffer without an ending token."""
    last = jnp.take_along_axis(completions.tokens, jnp.maximum(completions.lengths - 1, 0)[..., None], axis=-1)[..., 0]
    return (completions.lengths > 0) & ~jnp.isin(last, jnp.asarray(eos, jnp.int32))


def total(
    config: StepConfig,
    accuracy: Float[Array, "b g"],
    formatted: Bool[Array, "b g"],
    completions: Completions,
    terms: dict[str, Float[Array, "b g"]],
    failures: dict[str, Int[Array, "b g"]],
) -> Rewards:
    """Accuracy, format and length bonus with their weights, and everything measured."""
    low, high = config.bonus_range
    bonus = grpo.length_bonus(accuracy, completions.lengths.astype(jnp.float32), low=low, high=high)
    format_term = formatted.astype(jnp.float32)
    value = accuracy + config.reward.format * format_term + config.reward.length_bonus * bonus
    all_terms = {**terms, "accuracy": accuracy, "format": format_term, "length_bonus": bonus}
    failures = {**failures, "completion/unended": count(unended(completions, config.sampling.eos))}
    return jax.lax.stop_gradient(Rewards(value, all_terms, failures))
