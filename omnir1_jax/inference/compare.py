"""Two evaluations of the same items in the synthetic world, as before and after training, from what they stored."""

import functools
import json
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from omnir1_jax.data.synthetic import reader as synthetic
from omnir1_jax.data.synthetic.reader import TableReader
from omnir1_jax.files import json_file
from omnir1_jax.inference import report, store
from omnir1_jax.inference.store import LINES, RUN
from omnir1_jax.inference.tasks import SYNTHETIC
from omnir1_jax.reporting.before_after import KINDS, Comparison, Pair, Side

Line = Mapping[str, Any]


class Change(NamedTuple):
    """An item's two lines. `kind`: of KINDS."""

    kind: str
    before: Line
    after: Line

    @property
    def gain(self) -> float:
        return _score(self.after) - _score(self.before)


def stored(title: str, task: str, before: pathlib.Path, after: pathlib.Path) -> Comparison | None:
    """What changed between two evaluations, and the clips in which most did; the clips are made anew.

    Args:
      title: what the task is called. task: its name.
      before, after: directories of the evaluations.

    Returns:
      None if an evaluation was not of the synthetic world, does not say how its clips are made, as one of an older
      version, or if nothing was scored in both.
    """
    if not (options := _options(before)):
        return None
    reader = _reader(options)
    changes = _changes(reader, before, after)
    if not changes:
        return None
    by_kind = {kind: [change for change in changes if change.kind == kind] for kind in KINDS}
    by_kind = {kind: of_kind for kind, of_kind in by_kind.items() if of_kind}
    gain = lambda change: change.gain

    def pair(change: Change) -> Pair:
        ref = reader[change.before["position"]]
        lines = {before: change.before, after: change.after}
        sides = [Side(report.example(folder, ref, task, line), _score(line)) for folder, line in lines.items()]
        return Pair(ref, change.kind, *sides)

    least = min(changes, key=gain)
    return Comparison(
        title,
        {kind: [change.gain for change in of_kind] for kind, of_kind in by_kind.items()},
        [pair(max(of_kind, key=gain)) for of_kind in by_kind.values()],
        pair(least) if least.gain < 0 else None,
    )


def by_kind(folder: pathlib.Path) -> dict[str, float]:
    """Mean J&F of an evaluation's clips in percent, by what their queries take to understand, of KINDS."""
    if not (options := _options(folder)):
        return {}
    scored: dict[str, list[float]] = {}
    for position, line in store.read_lines(folder / LINES).items():
        if _is_scored(line):
            scored.setdefault(_kind(options, position), []).append(_score(line))
    return {kind: statistics.fmean(scored[kind]) for kind in KINDS if kind in scored}


@functools.cache  # a clip is made to know what its query takes, and several evaluations have the same
def _kind(options: str, position: int) -> str:
    return _reader(options)[position].extra["needs"]


@functools.cache
def _reader(options: str) -> TableReader:
    return synthetic.open(**json.loads(options))


def _options(folder: pathlib.Path) -> str:
    """How the reader of an evaluation's items was opened, as JSON; empty if it was not one of the synthetic world."""
    path = folder / RUN
    options = dict(json_file.read_object(path).get("dataset", {}).get("options", {})) if path.exists() else {}
    return json.dumps(options, sort_keys=True) if options.pop("name", "") == SYNTHETIC else ""


def _changes(reader: TableReader, before: pathlib.Path, after: pathlib.Path) -> list[Change]:
    """Items that were scored in both."""
    old, new = (store.read_lines(folder / LINES) for folder in (before, after))
    return [
        Change(reader[position].extra["needs"], old[position], new[position])
        for position in sorted(old.keys() & new.keys())
        if _is_scored(old[position]) and _is_scored(new[position])
    ]


def _is_scored(line: Line) -> bool:
    return line["predicted"] and not line["fault"] and line["scores"] is not None


def _score(line: Line) -> float:
    """J&F in percent."""
    return 50 * (line["scores"]["J"] + line["scores"]["F"])
