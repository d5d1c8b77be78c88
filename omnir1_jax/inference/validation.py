"""Validation during a training run: `run.evaluate` on held-out items, with the weights of the moment."""

import dataclasses
import math
import statistics
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from omnir1_jax.build.run import Run
from omnir1_jax.config.sections import Validate
from omnir1_jax.config.settings import section
from omnir1_jax.errors import InputError
from omnir1_jax.inference import identity, load, run, scores, tasks
from omnir1_jax.inference.load import Systems
from omnir1_jax.inference.samples import Benchmark
from omnir1_jax.inference.tasks import Options
from omnir1_jax.training import export
from omnir1_jax.training.checkpointing import Score
from omnir1_jax.training.loop import Validated

PREFIX = "validate"


class Validation:
    """Validation of one run, as set in the section `validate`.

    Called by every process of the run: all compute every batch, the first one writes predictions (to a temporary
    directory) and scores them.
    """

    def __init__(self, training: Run):
        """Opens the benchmark. Nothing is compiled.

        Raises:
          InputError: a benchmark, task, objective or metric that cannot be validated; names the setting.
        """
        settings = self._settings = section(Validate, training.config.validate)
        if training.frozen is None:
            raise InputError("validate.every: objective 'masks' trains no answers that could be validated; set it to 0")
        self.run = training
        shared_names = {field.name for field in dataclasses.fields(Options)} & vars(settings).keys()
        self._options = Options(**{name: getattr(settings, name) for name in shared_names})
        systems = load.systems(training.config, training.loaded, mesh=training.mesh, frozen=training.frozen)
        if jax.process_count() > 1 and systems.models.on_host:
            raise InputError("validate.every: System 2 on the host is validated in one process only; set it to 0")
        try:
            self._benchmarks = list(tasks.benchmarks(systems, self._options))
        except InputError as error:
            raise InputError(f"validate: {str(error).removeprefix('--')}") from error
        self._chosen = {benchmark.name: self._entries(benchmark) for benchmark in self._benchmarks}
        if settings.metric and settings.metric.partition("/")[0] not in self._chosen:
            names = " or ".join(self._chosen)
            raise InputError(f"validate.metric: {settings.metric!r} does not begin with a task, {names}")

    def _entries(self, benchmark: Benchmark) -> list[str]:
        """Those of `validate.metrics` in the benchmark's table. InputError if none is, or `validate.metric` is not."""
        chosen = tasks.positions(benchmark, self._options)
        table = flat(scores.blank(benchmark.reader, benchmark.task, chosen, benchmark.root))
        metrics = [name for name in self._settings.metrics if name in table]
        task, _, name = self._settings.metric.partition("/")
        available = "nothing, since its ground truth is kept by a server" if "unscored" in table else ", ".join(table)
        if not metrics:
            raise InputError(f"validate.metrics: the table of {benchmark.name} has none of these, but {available}")
        if task == benchmark.name and name not in table:
            raise InputError(f"validate.metric: the table of {task} has no {name!r}, but {available}")
        return metrics

    def __call__(self, trainable: Any) -> Validated:
        """Metrics of the trained parameters in the first process, and the score in all."""
        systems, tables = self.systems(trainable), {}
        for benchmark in self._benchmarks:
            if jax.process_index() == 0:
                with tempfile.TemporaryDirectory(prefix="omnir1_jax_validate_") as folder:
                    results = run.evaluate(systems, benchmark, self._options, folder, quiet=True, values={})
                tables[benchmark.name] = flat(results["table"])
            else:
                _compute(systems, benchmark, self._options)
        metrics = self._metrics(tables)
        value = self._value(tables) if tables else 0.0
        if jax.process_count() > 1:  # as two halves, since 64 bits would be rounded
            halves = multihost_utils.broadcast_one_to_all(np.array([value], np.float64).view(np.uint32))
            value = float(np.asarray(halves, np.uint32).view(np.float64)[0])
        options = {name: x for name, x in vars(self._settings).items() if name not in ("every", "at_start", "root")}
        return Validated(metrics, Score(repr(options), value))

    def systems(self, trainable: Any) -> Systems:
        """The systems with the trained parameters, a copy of them in the dtype of the frozen ones."""
        config, loaded, frozen = self.run.config, self.run.loaded, self.run.frozen
        params = export.merged(config, loaded, trainable)
        if self._settings.system2 == "self":
            encoders = {name: params[name] for name in ("vision", "audio")}
            frozen = frozen.replace(encoders=encoders, reference=params["text"])
        return load.systems(config, loaded._replace(params=params), mesh=self.run.mesh, frozen=frozen)

    def _metrics(self, tables: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        return {
            f"{PREFIX}/{task}/{name}": table[name]
            for task, table in tables.items()
            for name in self._chosen[task]
            if name in table
        }

    def _value(self, tables: Mapping[str, Mapping[str, float]]) -> float:
        """Value of `validate.metric`, else the mean of each task's first metric; NaN if nothing could be scored."""
        if not self._settings.metric:
            return statistics.fmean(table.get(self._chosen[task][0], math.nan) for task, table in tables.items())
        task, _, name = self._settings.metric.partition("/")
        return tables[task].get(name, math.nan)


def _compute(systems: Systems, benchmark: Benchmark, options: Options) -> None:
    """What every process but the first computes, in step with it."""
    batch_size = identity.padded_batch_size(systems.mesh, options.batch_size)
    groups = run.batched(tasks.positions(benchmark, options), batch_size)
    for _ in run.answered(systems, benchmark, options, groups, batch_size):
        pass


def flat(table: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a nested table, by names with slashes."""
    number = lambda value: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return {name: float(value) for name, value in flatten_dict(table, sep="/").items() if number(value)}
