"""A benchmark's tasks with every rule for keyframes, each evaluated and reported in its own directory."""

import itertools
import pathlib
from typing import Any

from etils import epath

from omnir1_jax.inference import load, report, run, tasks
from omnir1_jax.inference.store import RESULTS, write_json
from omnir1_jax.inference.tasks import Options


def evaluate(
    made: load.Systems, options: Options, out: epath.PathLike, keyframes: tuple[str, ...] = (), *, quiet: bool = False
) -> dict[str, Any]:
    """Every task of the benchmark with every keyframe rule; returns results by label (one label: "")."""
    asked = list(tasks.tasks(made, options))
    rules = keyframes or (options.keyframes,)
    results = {}
    for task, rule in itertools.product(asked, rules):
        if task.family != "vos" and rule != "plan" and len(rules) > 1:
            continue
        parts = [task.name] * (len(asked) > 1) + [rule] * (len(rules) > 1)
        folder = pathlib.Path(out).joinpath(*parts)
        chosen = Options(**{**vars(options), "keyframes": rule})
        results["/".join(parts)] = run.evaluate(made, task, chosen, folder, quiet=quiet)
        report.write(folder, task, results["/".join(parts)])
    if len(results) > 1:
        write_json(pathlib.Path(out) / RESULTS, {"runs": results})
    return results
