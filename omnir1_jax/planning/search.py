"""The cheapest settings of a config that fit a topology, by compiling one after another.

A step's memory has one peak per stage, and one setting dominates each. So after a plan that does not fit, the settings
of all stages that are too large are lowered at once; the first mesh with a fit is then compared with the others.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from omnir1_jax.errors import InputError
from omnir1_jax.planning import report
from omnir1_jax.planning.report import LIMITS, Expected
from omnir1_jax.planning.topology import GIB, devices_of

Choice = dict[str, Any]

LADDERS = {  # from the fastest to the least memory
    "remat": ("dots_no_batch", "attention", "full"),
    "score_chunk": (256, 64),  # tokens whose logits exist
    "object_chunk": (4, 1),  # objects tracked at a time
}
SMALLER = {"update": ("remat", "score_chunk"), "segment": ("object_chunk",)}  # settings of a stage, in this order


def meshes(config: ConfigDict, chips: int) -> list[dict[str, int]]:
    """Meshes that divide the batches: small `tensor` first, then weights sharded over as many chips as possible."""
    sizes = {entry.batch_size for entry in config.data.values()}
    shapes = [
        {"data": data, "fsdp": chips // data // tensor, "tensor": tensor}
        for tensor, data in itertools.product((1, 2, 4), (1, 2, 4, 8))
        if chips % (data * tensor) == 0
    ]
    divisors = [mesh for mesh in shapes if all(size % (mesh["data"] * mesh["fsdp"]) == 0 for size in sizes)]
    if not divisors:
        raise InputError(f"data.*.batch_size: no mesh of {chips} chips divides the batches; take a multiple of {chips}")
    return divisors


def fastest(mesh: dict[str, int]) -> Choice:
    return {"mesh": mesh, **{name: values[0] for name, values in LADDERS.items()}}


def smaller(choice: Choice, plan: Mapping[str, Any]) -> Choice | None:
    """The next choice on the same mesh after a plan that does not fit; None if the mesh itself has to change.

    Stages over the capacity get the next value of a setting; if there are none, the largest one does.
    """
    memory = plan["hbm_bytes_per_chip"]
    peaks = {stage: size for stage, size in plan["temporaries_by_phase"].items() if stage in report.MEMORY_PHASES}
    other_bytes = memory["total"] - memory["temporaries"]
    over = [stage for stage, size in peaks.items() if other_bytes + size > memory["capacity"]]
    over = over or sorted(peaks, key=lambda stage: -peaks[stage])[:1]
    changes = {}
    for stage in over:
        for name in SMALLER.get(stage, ()):
            position = LADDERS[name].index(choice[name]) + 1
            if position < len(LADDERS[name]):
                changes[name] = LADDERS[name][position]
                break
        else:
            return None
    return choice | changes if changes else None


def changed(config: ConfigDict, choice: Choice) -> ConfigDict:
    """A copy of the config with a choice's settings."""
    new = config.copy_and_resolve_references()
    new.mesh.update(choice["mesh"])
    new.thinker.remat = choice["remat"]
    new.step.score_chunk = choice["score_chunk"]
    new.sam2.object_chunk = choice["object_chunk"]
    return new


def cheapest(
    config: ConfigDict,
    topology: str,
    *,
    hbm: float | None = None,
    expected: Expected = LIMITS,
    stages: Sequence[str] = (),
    effort: float = 0.0,
    log: Callable[[str], None] = print,
    tries: int = 12,
) -> dict[str, Any]:
    """The fastest of the plans with the first settings that fit, on the first mesh where any do and those after it.

    Args:
      tries: maximum compilations; a full model takes minutes. stages, effort: as in `report.plan`.

    Returns:
      the plan with its settings under "choice"; if none fits, the one with the least memory.
    """
    remaining_meshes = meshes(config, len(devices_of(topology)))
    choice: Choice | None = fastest(remaining_meshes.pop(0))
    best, smallest = None, None
    size = lambda plan: plan["hbm_bytes_per_chip"]["total"]
    seconds = lambda plan: plan["seconds_estimate"]["total"]
    for _ in range(tries):
        plan = report.plan(
            changed(config, choice), topology, hbm=hbm, expected=expected, stages=stages, effort=effort
        ) | {"choice": choice}
        log(f"{choice}: {size(plan) / GIB:.1f} GiB, {'fits' if plan['fits'] else 'does not fit'}")
        smallest = plan if smallest is None or size(plan) < size(smallest) else smallest
        if plan["fits"]:
            best = plan if best is None or seconds(plan) < seconds(best) else best
        next_choice = None if best else smaller(choice, plan)
        if next_choice is None and remaining_meshes:
            # If nothing fits yet, settings that were too large are so on the next mesh as well.
            next_choice = choice | {"mesh": remaining_meshes.pop(0)}
        if next_choice is None:
            break
        choice = next_choice
    return best or smallest
