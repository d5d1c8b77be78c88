"""The cheapest settings of a config that fit a topology, by compiling one after another."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from omnir1_jax.errors import InputError
from omnir1_jax.planning import report
from omnir1_jax.planning.report import LIMITS, Expected
from omnir1_jax.planning.topology import devices_of

REMATS = ("dots_no_batch", "attention", "full")  # from the fewest operations to the least memory
CHUNKS = ((256, 4), (64, 1))  # tokens whose logits exist, objects tracked at a time


def candidates(config: ConfigDict, chips: int) -> Iterator[dict[str, Any]]:
    """Settings to try, those that ought to be faster first: few operations, little cut along `tensor`."""
    sizes = {entry.batch_size for entry in config.data.values()}
    meshes = [
        {"data": data, "fsdp": chips // data // tensor, "tensor": tensor}
        for tensor in (1, 2, 4)
        for data in (1, 2, 4, 8)
        if chips % (data * tensor) == 0
    ]
    usable = [mesh for mesh in meshes if all(size % (mesh["data"] * mesh["fsdp"]) == 0 for size in sizes)]
    for (chunk, objects), remat, mesh in itertools.product(CHUNKS, REMATS, usable):
        yield {"mesh": mesh, "remat": remat, "score_chunk": chunk, "object_chunk": objects}


def changed(config: ConfigDict, choice: dict[str, Any]) -> ConfigDict:
    """A copy of the config with a candidate's settings."""
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
    """The first candidate's kind of mesh that fits, improved over its neighbours: the least seconds of those compiled.

    Args:
      tries: compilations at most; a whole model takes minutes. stages, effort: as in `report.plan`.

    Returns:
      the plan with its settings under "choice"; if none fits, the one that needs least memory.
    """
    best, least = None, None
    chips = len(devices_of(topology))
    options = list(itertools.islice(candidates(config, chips), tries))
    if not options:
        raise InputError(f"data.*.batch_size: no mesh of {chips} chips divides the batches; take a multiple of {chips}")
    for choice in options:
        if best is not None and choice["remat"] != best["choice"]["remat"]:
            break  # what follows computes more
        new = changed(config, choice)
        found = report.plan(new, topology, hbm=hbm, expected=expected, stages=stages, effort=effort)
        found |= {"choice": choice}
        size = found["hbm_bytes_per_chip"]["total"] or math.inf
        log(f"{choice}: {size / 2**30:.1f} GiB, {'fits' if found['fits'] else 'does not fit'}")
        if least is None or size < (least["hbm_bytes_per_chip"]["total"] or math.inf):
            least = found
        seconds = lambda plan: plan["seconds_estimate"]["total"]
        if found["fits"] and (best is None or seconds(found) < seconds(best)):
            best = found
    return best or least
