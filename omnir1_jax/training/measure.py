"""Speed of a step; the distribution of a run's seconds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from omnir1_jax.build import optimizer
from omnir1_jax.config.sections import Optimizer
from omnir1_jax.config.settings import section


def speed(config: ConfigDict, batch: Any, metrics: Mapping[str, Any], seconds: float) -> dict[str, float]:
    """Prompts per second of a step, and sampled tokens per second if it samples."""
    prompts = max((len(leaf) for leaf in jax.tree.leaves(batch)[:1]), default=0)  # every array has a row per prompt
    rates = {"time/prompts_per_second": prompts / seconds}
    if (length := metrics.get("completion/length")) is not None:
        rates["time/tokens_per_second"] = prompts * config.step.group * float(length) / seconds
    return rates


def learning_rate(config: ConfigDict) -> Callable[[int, int], float]:
    """Function of a step and the number of updates skipped before it: the learning rate of its first update."""
    settings, updates = section(Optimizer, config.optimizer), config.step.updates
    schedule = optimizer.schedule(settings, config.steps * updates)
    if settings.schedule not in optimizer.ENDLESS:  # those give a Python number
        schedule = jax.jit(schedule)  # one program instead of one for each operation
    per_step = updates if config.objective == "grpo" else 1
    return lambda step, skipped: float(schedule(((step - 1) * per_step - skipped) // settings.accumulate))


def goodput(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of a run by activity, over all its starts, and the share of stepping.

    The last checkpoint, and the steps of a killed start after its last one, are not counted.
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
