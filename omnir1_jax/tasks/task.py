"""What a task is: all that there is to say about a type of question, in one object."""

import dataclasses
from collections.abc import Callable
from typing import Any

from omnir1_jax.rl.config import Rewards


def nothing(*_: Any) -> None:
    """The part of System 2 that a task has no use for."""


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A task family as pure functions. Those from `read` to `reward` are traced into the step, in this order.

    Attributes:
      name: in messages and logs.
      batch: the class of its batches, a flax.struct dataclass with the field `policy`, System 1's prompts.
      read: (frozen, config, batch, completions) -> reading, what the completions say.
      ground: (models, frozen, config, batch, reading) -> what System 2 found; None for a task without it.
      segment: (models, frozen, config, batch, reading, found) -> masks; None for a task without them.
      reward: (config, batch, completions, reading, found, masks) -> Rewards.
    """

    name: str
    batch: type
    read: Callable[..., Any]
    reward: Callable[..., Rewards]
    ground: Callable[..., Any] = nothing
    segment: Callable[..., Any] = nothing
