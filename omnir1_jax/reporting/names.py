"""Names of a run's metrics: those about completions carry the task of their step, "reward/<task>/total".

Rows of `metrics.jsonl` have the task beside their step. Rows of older runs have neither; they read the same here.
"""

from collections.abc import Mapping
from typing import Any

TASK = "task"
OF_TASK = ("reward", "failure", "completion", "ground", "sft")  # groups of metrics that depend on the task


def with_task(task: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a step under their names in files and curves."""
    return {_insert(name, task): value for name, value in metrics.items()}


def _insert(name: str, task: str) -> str:
    group, slash, rest = name.partition("/")
    return f"{group}/{task}/{rest}" if slash and group in OF_TASK else name


def without_task(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `metrics.jsonl` under the names of a step's metrics, without the task."""
    task = row.get(TASK)
    begins = {f"{group}/{task}/": f"{group}/" for group in OF_TASK if task}
    return {_replaced(name, begins): value for name, value in row.items() if name != TASK}


def _replaced(name: str, begins: Mapping[str, str]) -> str:
    return next((new + name.removeprefix(old) for old, new in begins.items() if name.startswith(old)), name)


def task_of(row: Mapping[str, Any]) -> str:
    """The task of a row; of an older run's the family that has such terms."""
    if TASK in row:
        return str(row[TASK])
    return "vos" if "reward/alignment" in row or "reward/segmentation" in row else "refavs"
