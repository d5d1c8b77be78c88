"""Task families: what a completion is read as, whether System 2 looks, and what the answer earns.

Each module has a `Batch` and the four functions that the step calls between sampling and learning: `read`, `ground`,
`segment`, `reward`. A family that needs no segmenter returns None from `segment`, and so on.
"""

from types import ModuleType

from omnir1_jax.errors import InputError
from omnir1_jax.tasks import qa, refavs, refcocog, vos

FAMILIES: dict[str, ModuleType] = {"vos": vos, "refavs": refavs, "refcocog": refcocog, "qa": qa}


def family_of(batch: object) -> ModuleType:
    """The module whose batch this is."""
    for module in FAMILIES.values():
        if isinstance(batch, module.Batch):
            return module
    raise InputError(f"step: {type(batch).__name__} is the batch of no task family ({', '.join(FAMILIES)})")
