"""System 2's first half: descriptions to boxes in single frames.

`step.grounder` and `--system2` name one of `GROUNDERS`, or an object of one's own as module:object or file.py:object.
"""

from collections.abc import Callable

from omnir1_jax.config import lookup
from omnir1_jax.errors import InputError
from omnir1_jax.systems.grounders.protocol import GroundedBoxes, Grounder, Requests
from omnir1_jax.systems.grounders.thinker import ThinkerGrounder

__all__ = ["GROUNDERS", "GroundedBoxes", "Grounder", "Requests", "make"]

GROUNDERS: dict[str, Callable[[ThinkerGrounder], Grounder]] = {"qwen_omni": lambda thinker: thinker}


def make(name: str, thinker: ThinkerGrounder, setting: str = "step.grounder") -> Grounder:
    """The grounder of this name.

    Args:
      thinker: what the name "qwen_omni" stands for.

    Raises:
      InputError: there is no such thing, or it is no grounder; names the setting.
    """
    if name in GROUNDERS:
        return GROUNDERS[name](thinker)
    found = lookup.registered(name, GROUNDERS, setting)
    if not isinstance(found, Grounder):
        raise InputError(f"{setting}: {name} is not a grounder; see omnir1_jax/systems/grounders/protocol.py")
    return found
