"""Weak scaling by plan: the same prompts per chip on more and more chips."""

from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from omnir1_jax.errors import InputError
from omnir1_jax.planning import report
from omnir1_jax.planning.report import LIMITS, Expected
from omnir1_jax.planning.topology import devices_of


def weak(
    config: ConfigDict,
    topologies: Sequence[str],
    *,
    hbm: float | None = None,
    expected: Expected = LIMITS,
    stages: Sequence[str] = (),
    effort: float = 0.0,
    log: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """A plan per topology, the config's batches being those of the first one; see `report.plan`.

    The mesh is the config's; `mesh.data: -1` adds replicas of the weights, `mesh.fsdp: -1` adds shards.
    """
    first, plans = len(devices_of(topologies[0])), []
    for topology in topologies:
        chips = len(devices_of(topology))
        if chips % first:
            raise InputError(
                f"--topology: {topology} has {chips} chips, not a multiple of the {first} of {topologies[0]}"
            )
        grown = config.copy_and_resolve_references()
        for entry in grown.data.values():
            entry.batch_size *= chips // first
        plans.append(report.plan(grown, topology, hbm=hbm, expected=expected, stages=stages, effort=effort))
        log(f"{topology}: {plans[-1]['compile_seconds']:.0f} s to compile")
    return plans
