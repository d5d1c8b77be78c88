"""A benchmark's tasks with every rule for keyframes, each evaluated and reported in its own directory."""

import dataclasses
import itertools
import json
import pathlib
from typing import Any, NamedTuple

import jax
from etils import epath

from omnir1_jax.errors import InputError
from omnir1_jax.files import folders
from omnir1_jax.inference import identity, load, report, run, store, tasks
from omnir1_jax.inference.samples import Benchmark
from omnir1_jax.inference.store import RESULTS, RUN
from omnir1_jax.inference.tasks import Options
from omnir1_jax.reporting.example import finite


class Part(NamedTuple):
    """One evaluation of a benchmark: a task with one rule for keyframes, in its own directory."""

    label: str
    benchmark: Benchmark
    options: Options


def evaluate(
    systems: load.Systems,
    options: Options,
    out: epath.PathLike,
    keyframes: tuple[str, ...] = (),
    *,
    quiet: bool = False,
    known: run.Known | None = None,
) -> dict[str, Any]:
    """Every task of the benchmark with every keyframe rule; returns results by label (one label: "").

    Args:
      known: see `run.evaluate`; without it, System 1 answers each item once for all rules of this call.

    Raises:
      InputError: `out` or a directory in it belongs to another evaluation, or another process holds it; raised before
        anything is computed.
    """
    if jax.process_count() > 1:
        raise InputError("evaluate: one process only; it uses all of its devices")
    parts = _parts(systems, options, keyframes)
    several = len(parts) > 1
    tops = list(dict.fromkeys(part.label.partition("/")[0] for part in parts)) if several else []
    weights = load.fingerprint(systems)
    values = [identity.identity(systems, part.benchmark, part.options, weights) for part in parts]
    store.check_folder(out)
    with folders.hold(out, store.KIND, store.FLAG, names=[*store.NAMES, *tops], adopt=store.adopt) as holder:
        if (RUN in holder.names) == several and RESULTS in holder.names:
            kind = "one evaluation" if several else "an evaluation for each of several tasks or rules for keyframes"
            raise InputError(f"{store.FLAG}: {out} holds {kind}; name another directory")
        directories = [pathlib.Path(out, part.label) for part in parts]
        for directory, identity_values in zip(directories, values):
            store.check_folder(directory, identity_values, holder.id)
        for top in tops:
            folders.begin(out, top, store.FLAG)
        results: dict[str, Any] = {}
        known = {} if known is None else known
        for part, directory, identity_values in zip(parts, directories, values):
            result = run.evaluate(
                systems,
                part.benchmark,
                part.options,
                directory,
                quiet=quiet,
                values=identity_values,
                owner=holder.id,
                known=known,
            )
            report.write(directory, part.benchmark, result)
            results[part.label] = result
        if several:
            with folders.file(out, RESULTS, store.FLAG) as scratch:
                scratch.write_text(json.dumps(finite({"runs": results}), indent=2) + "\n")
    return results


def _parts(systems: load.Systems, options: Options, keyframes: tuple[str, ...]) -> list[Part]:
    benchmarks = list(tasks.benchmarks(systems, options))
    rules = keyframes or (options.keyframes,)
    parts = []
    for benchmark, rule in itertools.product(benchmarks, rules):
        if not benchmark.task.plans and rule != "plan" and len(rules) > 1:
            continue
        label = "/".join([benchmark.name] * (len(benchmarks) > 1) + [rule] * (len(rules) > 1))
        parts.append(Part(label, benchmark, dataclasses.replace(options, keyframes=rule)))
    return parts
