"""What a step took and how fast it was; what the seconds of a run went to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from omnir1_jax.build import optimizer
from omnir1_jax.config.sections import Optimizer
from omnir1_jax.config.settings import section


def speed(config: ConfigDict, batch: Any, metrics: Mapping[str, Any], seconds: float) -> dict[str, float]:
    """Prompts per second of a step, and sampled tokens per second where it samples."""
    prompts = max((len(leaf) for leaf in jax.tree.leaves(batch)[:1]), default=0)  # every array has a row of each
    found = {"time/prompts_per_second": prompts / seconds}
    if (length := metrics.get("completion/length")) is not None:
        found["time/tokens_per_second"] = prompts * config.step.group * float(length) / seconds
    return found


def learning_rate(config: ConfigDict) -> Callable[[int, int], float]:
    """From a step and how many updates were skipped before it to the learning rate of its first update."""
    own, updates = section(Optimizer, config.optimizer), config.step.updates
    schedule = optimizer.schedule(own, config.steps * updates)
    each = updates if config.objective == "grpo" else 1
    return lambda step, skipped: float(schedule(((step - 1) * each - skipped) // own.accumulate))


def goodput(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of a run by what they went to, those of all its starts together, and the share of stepping.

    The last checkpoint, and what a killed start did beyond its last one, are in none of them.
    """
    total = lambda name: sum(row.get(name) or 0.0 for row in rows)
    parts = {
        "waiting": total("time/data"),
        "compiling": total("time/compile"),  # the first step of each task in each start
        "saving": total("time/save"),
        "validating": total("time/validate"),
    }
    parts["stepping"] = total("seconds") - parts["waiting"] - parts["compiling"]
    return parts | {"share": parts["stepping"] / max(sum(parts.values()), 1e-9)}
