"""The cheapest settings of a config that fit a topology, by compiling one after another.

A step's memory has one peak in each stage, and one setting says most about each. So after a plan that does not fit,
the settings of all stages that are too large are made smaller at once; the first mesh on which that leads to a fit
is then compared with the others.
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

LADDERS = {  # from what ought to be fastest to what takes least memory
    "remat": ("dots_no_batch", "attention", "full"),
    "score_chunk": (256, 64),  # tokens whose logits exist
    "object_chunk": (4, 1),  # objects tracked at a time
}
SMALLER = {"update": ("remat", "score_chunk"), "segment": ("object_chunk",)}  # what a stage has, in this order


def meshes(config: ConfigDict, chips: int) -> list[dict[str, int]]:
    """Those that divide the batches: little cut along `tensor` first, and then weights on as many chips as can be."""
    sizes = {entry.batch_size for entry in config.data.values()}
    shapes = [
        {"data": data, "fsdp": chips // data // tensor, "tensor": tensor}
        for tensor, data in itertools.product((1, 2, 4), (1, 2, 4, 8))
        if chips % (data * tensor) == 0
    ]
    found = [mesh for mesh in shapes if all(size % (mesh["data"] * mesh["fsdp"]) == 0 for size in sizes)]
    if not found:
        raise InputError(f"data.*.batch_size: no mesh of {chips} chips divides the batches; take a multiple of {chips}")
    return found


def fastest(mesh: dict[str, int]) -> Choice:
    return {"mesh": mesh, **{name: values[0] for name, values in LADDERS.items()}}


def smaller(choice: Choice, plan: Mapping[str, Any]) -> Choice | None:
    """What to try on the same mesh after a plan that does not fit; None if the mesh itself has to change.

    Stages over the capacity get the next value of a setting; where the plan names none, so does the largest.
    """
    memory = plan["hbm_bytes_per_chip"]
    peaks = {stage: size for stage, size in plan["temporaries_by_phase"].items() if stage in report.MEMORY_PHASES}
    beside = memory["total"] - memory["temporaries"]
    over = [stage for stage, size in peaks.items() if beside + size > memory["capacity"]]
    over = over or sorted(peaks, key=lambda stage: -peaks[stage])[:1]
    changes = {}
    for stage in over:
        for name in SMALLER.get(stage, ()):
            place = LADDERS[name].index(choice[name]) + 1
            if place < len(LADDERS[name]):
                changes[name] = LADDERS[name][place]
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
    """The first mesh's settings that fit, and the same on the meshes after it: the least seconds of those compiled.

    Args:
      tries: compilations at most; a whole model takes minutes. stages, effort: as in `report.plan`.

    Returns:
      the plan with its settings under "choice"; if none fits, the one that needs least memory.
    """
    waiting = meshes(config, len(devices_of(topology)))
    choice: Choice | None = fastest(waiting.pop(0))
    best, least = None, None
    size = lambda plan: plan["hbm_bytes_per_chip"]["total"]
    seconds = lambda plan: plan["seconds_estimate"]["total"]
    for _ in range(tries):
        plan = report.plan(
            changed(config, choice), topology, hbm=hbm, expected=expected, stages=stages, effort=effort
        ) | {"choice": choice}
        log(f"{choice}: {size(plan) / GIB:.1f} GiB, {'fits' if plan['fits'] else 'does not fit'}")
        least = plan if least is None or size(plan) < size(least) else least
        if plan["fits"]:
            best = plan if best is None or seconds(plan) < seconds(best) else best
        following = None if best else smaller(choice, plan)
        if following is None and waiting:
            # Where nothing fits yet, what was found too large is so on the next mesh as well.
            following = choice | {"mesh": waiting.pop(0)}
        if following is None:
            break
        choice = following
    return best or least
