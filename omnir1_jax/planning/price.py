"""What a run of a plan takes: hours of all its chips, and their price."""

import math
from typing import Any

from ml_collections import ConfigDict

WRITING = 0.1e9  # bytes a second of a checkpoint, as to a bucket or a shared disk: the slow end


def run(plan: dict[str, Any], config: ConfigDict, price: float) -> dict[str, float]:
    """Of the config's steps, all like the planned one, with one compilation and the checkpoints in between; also the
    validations where they were planned.

    Args:
      plan: of `report.plan`, whole or of stages.
      price: dollars of a chip and hour.
    """
    memory = plan["hbm_bytes_per_chip"]
    # As if every chip held another piece: where pieces repeat, that is too much.
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


def line(found: dict[str, float], plan: dict[str, Any], config: ConfigDict) -> str:
    """In words."""
    named = ("steps", "compilation", "checkpoints", "validations")
    parts = ", ".join(f"{found[f'{name} hours']:.2f} h {name}" for name in named if f"{name} hours" in found)
    return (
        f"a run of {config.steps} steps: {parts}; {found['chip hours']:.1f} chip hours on {plan['chips']} chips, "
        f"{found['dollars']:.2f} USD"
    )
