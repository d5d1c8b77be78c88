"""Hours of a planned run on all its chips, and their price."""

import math
from typing import Any

from ml_collections import ConfigDict

WRITING = 0.1e9  # bytes a second of a checkpoint, as to a bucket or a shared disk: the slow end


def run(plan: dict[str, Any], config: ConfigDict, price: float) -> dict[str, float]:
    """Hours of the config's steps, all like the planned one, one compilation and the checkpoints, and of validations if
    they were planned; chip hours and dollars.

    Args:
      plan: of `report.plan`, complete or of stages.
      price: dollars per chip and hour.
    """
    memory = plan["hbm_bytes_per_chip"]
    # As if every chip held a different shard: an overestimate if shards are replicated.
    state = plan["chips"] * (memory["weights trained"] + memory["optimiser"])
    checkpoints = math.ceil(config.steps / config.checkpoint.every) if config.checkpoint.every else 1
    seconds = {
        "steps": config.steps * plan["seconds_estimate"]["total"],
        "compilation": plan["compile_seconds"],
        "checkpoints": checkpoints * state / WRITING,
    }
    validation = plan.get("validation", {})
    if "seconds" in validation:
        seconds["validations"] = validation["times"] * validation["seconds"]
    hours = sum(seconds.values()) / 3600
    return {
        **{f"{name} hours": part / 3600 for name, part in seconds.items()},
        "chip hours": hours * plan["chips"],
        "dollars": hours * plan["chips"] * price,
    }


def line(cost: dict[str, float], plan: dict[str, Any], config: ConfigDict) -> str:
    """The hours and the price as a line of text."""
    names = ("steps", "compilation", "checkpoints", "validations")
    parts = ", ".join(f"{cost[f'{name} hours']:.2f} h {name}" for name in names if f"{name} hours" in cost)
    return (
        f"a run of {config.steps} steps: {parts}; {cost['chip hours']:.1f} chip hours on {plan['chips']} chips, "
        f"{cost['dollars']:.2f} USD"
    )
