"""Operations per second of a run's own steps: those of the program, its loops as far as they went in each step."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from omnir1_jax.build import models
from omnir1_jax.build.data import task_of
from omnir1_jax.build.run import Run
from omnir1_jax.planning import hlo, operations, step, topology
from omnir1_jax.planning.abstract import Program
from omnir1_jax.planning.hlo import Module
from omnir1_jax.planning.operations import Assumptions
from omnir1_jax.planning.step import Rollout

# From a step's metrics and its seconds to further metrics.
Rates = Callable[[Mapping[str, Any], float], dict[str, float]]


def counter(run: Run) -> Callable[[str, Any, jax.stages.Lowered], Rates]:
    """For a task, a batch of it and its lowered step: what its steps do per second.

    TFLOP/s are those of all devices together. The MFU is their share of the devices' peak, where that is known.

    Raises:
      InputError: from the function: a loop whose trips are not known (System 2 is the user's own).
    """

    def rates(task: str, batch: Any, lowered: jax.stages.Lowered) -> Rates:
        devices, peak = 1 if run.mesh is None else run.mesh.size, topology.peak_of(jax.devices()[0].device_kind)
        count = counted(program_of(run, task, batch), task, hlo.parse(lowered.as_text("hlo", debug_info=True)), devices)

        def of_step(metrics: Mapping[str, Any], seconds: float) -> dict[str, float]:
            each = count(metrics) / seconds
            found = {"time/tflops_per_second": each / 1e12}
            return found if peak is None else found | {"time/mfu": each / (devices * peak)}

        count({})  # what cannot be counted shows now
        return of_step

    return rates


def program_of(run: Run, task: str, batch: Any) -> Program:
    """What the planner has to know of a run's own step of a task."""
    made, shapes = run.loaded.models, jax.eval_shape(lambda: batch)
    choices = models.step_config(run.config, made.thinker.config.tokens)
    tasks, keep = {task: task_of(run.config, task)}, {task: run.config.data[task].keep}
    return Program(made, choices, None, None, run.frozen, tasks, keep, {task: shapes})


def counted(program: Program, task: str, module: Module, devices: int = 1) -> Callable[[Mapping[str, Any]], float]:
    """From a step's metrics to its operations.

    Args:
      devices: that each compute what stands within a `shard_map` of the lowered program.
    """
    limits = step.longest(program, task)

    def operations_of(assumed: Assumptions) -> float:
        paths = operations.by_path(module, assumed)
        return sum(n * (devices if "shard_map" in operations.scopes(path) else 1) for path, n in paths.items())

    @functools.cache
    def parts(completion: int) -> tuple[float, dict[str, float]]:
        """Operations without the loops, and of one turn of each, with learning on so many tokens."""
        assumed = step.assumptions(program, limits._replace(completion=completion))
        turns = lambda own: operations_of(
            Assumptions(assumed.trips | dict.fromkeys(step.LOOPS, 0) | own, assumed.shares)
        )
        fixed = turns({})
        return fixed, {loop: turns({loop: 1}) - fixed for loop in step.LOOPS}

    def count(metrics: Mapping[str, Any]) -> float:
        rollout = rollout_of(metrics, limits)
        sizes = sorted({*program.step.score_lengths, limits.completion})
        fixed, each = parts(next(size for size in sizes if size >= rollout.completion))
        trips = step.assumptions(program, rollout).trips
        return fixed + sum(trips[loop] * amount for loop, amount in each.items())

    return count


def rollout_of(metrics: Mapping[str, Any], limits: Rollout) -> Rollout:
    """How far a step's loops went; to the limit where the step does not say."""
    value = lambda name, limit: int(metrics.get(name, limit))
    return Rollout(
        value("completion/longest", limits.completion),
        value("ground/longest_answer", limits.answer),
        value("ground/longest_request", limits.tail),
        value("ground/frames", limits.frames),
        value("ground/objects", limits.objects),
    )
