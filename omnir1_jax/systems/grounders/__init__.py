"""System 2's first half: descriptions to boxes in single frames.

`step.grounder` and `--system2` name one of `GROUNDERS` (with settings as NAME:SETTINGS), or a user-defined object as
module:object or file.py:object: a `Grounder`, or a plain function on the host (see `host`).
"""

import functools
from collections.abc import Callable

from omnir1_jax.config import lookup
from omnir1_jax.errors import InputError
from omnir1_jax.systems.grounders.host import HostGrounder
from omnir1_jax.systems.grounders.protocol import GroundedBoxes, Grounder, Requests
from omnir1_jax.systems.grounders.thinker import ThinkerGrounder

__all__ = ["GROUNDERS", "GroundedBoxes", "Grounder", "HostGrounder", "Requests", "make"]


def _grounding_dino(thinker: ThinkerGrounder | None, settings: str) -> Grounder:
    from omnir1_jax.systems.grounders import grounding_dino  # optional: needs torch

    return HostGrounder(grounding_dino.load(settings), "grounding_dino")


# Functions of (the thinker as grounder, SETTINGS).
GROUNDERS: dict[str, Callable[[ThinkerGrounder | None, str], Grounder]] = {
    "qwen_omni": lambda thinker, _: thinker,
    "grounding_dino": _grounding_dino,
}


@functools.lru_cache(maxsize=4)  # a detector is loaded once
def make(name: str, thinker: ThinkerGrounder | None = None, setting: str = "step.grounder") -> Grounder:
    """The grounder of this name.

    Args:
      thinker: grounder of the name "qwen_omni".

    Raises:
      InputError: no such name, or it is not a grounder; names the setting.
    """
    kind, _, settings = name.partition(":")
    if kind in GROUNDERS:
        return GROUNDERS[kind](thinker, settings)
    grounder = lookup.registered(name, GROUNDERS, setting)
    if isinstance(grounder, Grounder):
        return grounder
    if not callable(grounder):
        raise InputError(f"{setting}: {name} is neither a grounder nor a function; see omnir1_jax/systems/grounders")
    return HostGrounder(grounder, f"{setting}={name}")
