"""Operations per second of a run's steps: those of the program, with the trips of its loops in each step."""

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
    """For a task, a batch of it or its shapes, and its lowered step: the rates of its steps.

    TFLOP/s are those of all devices together. The MFU is their share of the devices' peak, if that is known.

    Raises:
      InputError: from the function: a loop whose trips are not known (a user-defined System 2).
    """

    def rates(task: str, batch: Any, lowered: jax.stages.Lowered) -> Rates:
        devices, peak = 1 if run.mesh is None else run.mesh.size, topology.peak_of(jax.devices()[0].device_kind)
        count = counted(program_of(run, task, batch), task, hlo.parse(lowered.as_text("hlo", debug_info=True)), devices)

        def of_step(metrics: Mapping[str, Any], seconds: float) -> dict[str, float]:
            per_second = count(metrics) / seconds
            rates_found = {"time/tflops_per_second": per_second / 1e12}
            return rates_found if peak is None else rates_found | {"time/mfu": per_second / (devices * peak)}

        count({})  # raises now what cannot be counted
        return of_step

    return rates


def program_of(run: Run, task: str, batch: Any) -> Program:
    """The planner's program of a run's step of a task."""
    specs, shapes = run.loaded.models, jax.eval_shape(lambda arrays: arrays, batch)
    step_config = models.step_config(run.config, specs.thinker.config.tokens)
    tasks, keep = {task: task_of(run.config, task)}, {task: run.config.data[task].keep}
    return Program(specs, step_config, None, None, run.frozen, tasks, keep, {task: shapes})


def counted(program: Program, task: str, module: Module, devices: int = 1) -> Callable[[Mapping[str, Any]], float]:
    """From a step's metrics to its operations.

    Args:
      devices: the devices that each compute the body of a `shard_map` in the lowered program.
    """
    limits = step.longest(program, task)

    def operations_of(assumed: Assumptions) -> float:
        paths = operations.by_path(module, assumed)
        return sum(n * (devices if "shard_map" in operations.scopes(path) else 1) for path, n in paths.items())

    @functools.cache
    def parts(completion: int) -> tuple[float, dict[str, float]]:
        """Operations without the loops, and of one trip of each, with learning on `completion` tokens."""
        assumed = step.assumptions(program, limits._replace(completion=completion))
        turns = lambda trips: operations_of(
            Assumptions(assumed.trips | dict.fromkeys(step.LOOPS, 0) | trips, assumed.shares)
        )
        fixed = turns({})
        return fixed, {loop: turns({loop: 1}) - fixed for loop in step.LOOPS}

    def count(metrics: Mapping[str, Any]) -> float:
        rollout = rollout_of(metrics, limits)
        sizes = sorted({*program.step.score_lengths, limits.completion})
        fixed, per_trip = parts(next(size for size in sizes if size >= rollout.completion))
        trips = step.assumptions(program, rollout).trips
        return fixed + sum(trips[loop] * amount for loop, amount in per_trip.items())

    return count


def rollout_of(metrics: Mapping[str, Any], limits: Rollout) -> Rollout:
    """Trips of a step's loops; the limit if the metrics do not have them."""
    value = lambda name, limit: int(metrics.get(name, limit))
    return Rollout(
        value("completion/longest", limits.completion),
        value("ground/longest_answer", limits.answer),
        value("ground/longest_request", limits.tail),
        value("ground/frames", limits.frames),
        value("ground/objects", limits.objects),
    )
