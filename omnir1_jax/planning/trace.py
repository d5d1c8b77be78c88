"""Seconds of a traced run by stage: the operations of each program, by the scopes that they were traced under."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from omnir1_jax.errors import InputError
from omnir1_jax.planning import hlo, operations
from omnir1_jax.planning.step import PHASES
from omnir1_jax.training.trace import PROGRAM, STEP


class Traced(NamedTuple):
    """The traced steps of a task.

    Attributes:
      steps: how many.
      seconds: that they took.
      phases: seconds of operations by phase, over all devices and threads, "other" among them.
    """

    steps: int
    seconds: float
    phases: dict[str, float]


class Event(NamedTuple):
    """One operation on one thread or core, in nanoseconds."""

    name: str
    start: float
    end: float
    module: str
    scopes: str  # where the trace itself has them


def read(folder: epath.PathLike) -> dict[str, Traced]:
    """The newest trace of a run's `profile/` (or of its work directory), by task.

    Raises:
      InputError: there is no trace, or it holds no step of a run.
    """
    folder = epath.Path(folder)
    folder = folder / "profile" if (folder / "profile").is_dir() else folder
    files = sorted(folder.glob("plugins/profile/*/*.xplane.pb")) if folder.is_dir() else []
    if not files:
        raise InputError(f"{folder}: no trace of a run is there; train with --config.profile.start=STEP")
    lines = [list(line.events) for plane in _planes(files[-1]) for line in plane.lines]
    steps = [
        (event.name.removeprefix(STEP), event.start_ns, event.start_ns + event.duration_ns)
        for events in lines
        for event in events
        if event.name.startswith(STEP)
    ]
    if not steps:
        raise InputError(f"{files[-1]}: holds no step of a run")
    paths = {path.name.removesuffix(PROGRAM): _paths(path.read_text()) for path in folder.glob(f"*{PROGRAM}")}
    found = {}
    for task in dict.fromkeys(task for task, _, _ in steps):
        own = [(start, end) for name, start, end in steps if name == task]
        phases: Counter[str] = Counter()
        for events in lines:
            for event, seconds in self_seconds(_operations(events, own)):
                phases[phase(event, paths.get(task, {}))] += seconds
        known = {name: phases[name] for name in (*PHASES, "other") if phases[name]}
        found[task] = Traced(len(own), sum(end - start for start, end in own) * 1e-9, known)
    return found


def _planes(path: epath.Path) -> Iterable[Any]:
    return jax.profiler.ProfileData.from_serialized_xspace(path.read_bytes()).planes


def _paths(program: str) -> dict[str, str]:
    """Scope paths of a compiled program's instructions, by name."""
    module = hlo.parse(program)
    return {one.name: one.path for computation in module.computations.values() for one in computation}


def _operations(events: Iterable[Any], steps: Sequence[tuple[float, float]]) -> list[Event]:
    """Those of compiled programs that begin within the steps."""
    found = []
    for event in events:
        if not any(start <= event.start_ns < end for start, end in steps):
            continue
        stats = {name: value for name, value in event.stats if name in ("hlo_op", "hlo_module", "tf_op")}
        if stats.keys() & {"hlo_op", "tf_op"}:
            name, module = str(stats.get("hlo_op", event.name)), str(stats.get("hlo_module", ""))
            end = event.start_ns + event.duration_ns
            found.append(Event(name, event.start_ns, end, module, str(stats.get("tf_op", ""))))
    return found


def self_seconds(events: Sequence[Event]) -> Iterator[tuple[Event, float]]:
    """Events of one thread with their seconds, those of the events within them left out."""
    open_events: list[tuple[Event, float]] = []  # from the outermost, with the nanoseconds of what is in each

    def closed(until: float) -> Iterator[tuple[Event, float]]:
        while open_events and open_events[-1][0].end <= until:
            event, inner = open_events.pop()
            if open_events:
                outer, sum_inner = open_events[-1]
                open_events[-1] = outer, sum_inner + event.end - event.start
            yield event, (event.end - event.start - inner) * 1e-9

    for event in sorted(events, key=lambda event: (event.start, -event.end)):
        yield from closed(event.start)
        open_events.append((event, 0.0))
    yield from closed(float("inf"))


def phase(event: Event, paths: dict[str, str]) -> str:
    """The phase of an operation: by its scopes; of a staged step by its program's name."""
    path = event.scopes or paths.get(event.name, "")
    found = operations.phase_of(path, PHASES)
    stage = re.sub(r"^jit_", "", event.module)
    return stage if found == "other" and stage in PHASES else found


def table(found: dict[str, Traced]) -> str:
    """What a person reads."""
    lines = []
    for task, traced in found.items():
        total = sum(traced.phases.values())
        lines += [f"{task}: {traced.steps} steps, {traced.seconds / traced.steps:.3f} s per step"]
        lines += [f"{'stage':<20}{'s per step':>12}{'share':>8}"]
        for name, seconds in traced.phases.items():
            lines.append(f"{name:<20}{seconds / traced.steps:>12.4f}{seconds / max(total, 1e-30):>8.1%}")
    return "\n".join(lines)
