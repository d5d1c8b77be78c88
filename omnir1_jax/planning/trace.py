"""Seconds of a traced run by stage: the operations of each program, grouped by the scopes they were traced under."""

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
      steps: number of steps.
      seconds: their duration.
      phases: seconds of operations by phase, over all devices and threads, including "other".
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
    scopes: str  # if the trace has them


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
    tasks = {}
    for task in dict.fromkeys(task for task, _, _ in steps):
        task_steps = [(start, end) for name, start, end in steps if name == task]
        phases: Counter[str] = Counter()
        for events in lines:
            for event, seconds in self_seconds(_operations(events, task_steps)):
                phases[phase(event, paths.get(task, {}))] += seconds
        phase_seconds = {name: phases[name] for name in (*PHASES, "other") if phases[name]}
        tasks[task] = Traced(len(task_steps), sum(end - start for start, end in task_steps) * 1e-9, phase_seconds)
    return tasks


def _planes(path: epath.Path) -> Iterable[Any]:
    return jax.profiler.ProfileData.from_serialized_xspace(path.read_bytes()).planes


def _paths(program: str) -> dict[str, str]:
    """Scope paths of a compiled program's instructions, by name."""
    module = hlo.parse(program)
    return {op.name: op.path for computation in module.computations.values() for op in computation}


def _operations(events: Iterable[Any], steps: Sequence[tuple[float, float]]) -> list[Event]:
    """Operations of compiled programs that begin within the steps."""
    operations = []
    for event in events:
        if not any(start <= event.start_ns < end for start, end in steps):
            continue
        stats = {name: value for name, value in event.stats if name in ("hlo_op", "hlo_module", "tf_op")}
        if stats.keys() & {"hlo_op", "tf_op"}:
            name, module = str(stats.get("hlo_op", event.name)), str(stats.get("hlo_module", ""))
            end = event.start_ns + event.duration_ns
            operations.append(Event(name, event.start_ns, end, module, str(stats.get("tf_op", ""))))
    return operations


def self_seconds(events: Sequence[Event]) -> Iterator[tuple[Event, float]]:
    """Events of one thread with their seconds, without those of nested events."""
    open_events: list[tuple[Event, float]] = []  # from the outermost, with the nanoseconds of nested events

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
    phase_name = operations.phase_of(path, PHASES)
    stage = re.sub(r"^jit_", "", event.module)
    return stage if phase_name == "other" and stage in PHASES else phase_name


def table(tasks: dict[str, Traced]) -> str:
    """The stages' seconds as text."""
    lines = []
    for task, traced in tasks.items():
        total = sum(traced.phases.values())
        lines += [f"{task}: {traced.steps} steps, {traced.seconds / traced.steps:.3f} s per step"]
        lines += [f"{'stage':<20}{'s per step':>12}{'share':>8}"]
        for name, seconds in traced.phases.items():
            lines.append(f"{name:<20}{seconds / traced.steps:>12.4f}{seconds / max(total, 1e-30):>8.1%}")
    return "\n".join(lines)
