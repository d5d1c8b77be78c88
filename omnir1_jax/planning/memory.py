"""Memory of a compiled program from the compiler's dumps: its buffers, and when each is in use.

`options` makes the compiler write them into a folder, even if the program does not fit; `read` reads them.
"""

import pathlib
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from omnir1_jax.errors import InputError
from omnir1_jax.planning import hlo
from omnir1_jax.planning.operations import phase_of

SMALLEST = 2**20  # bytes; temporaries below it are left out
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+), (?:page \d+, )?(.*):$")
_VALUE = re.compile(r"^ value: <\d+ (\S+?)(\{[\d,]*\})? @\d+> \(size=(\d+),offset=(\d+)\): (\S+)")


class Buffer(NamedTuple):
    """A temporary: the bytes from `offset` on, in use from `start` to `end` of the schedule."""

    offset: int
    size: int
    start: int
    end: int
    name: str
    shape: str


class Notes(NamedTuple):
    """The compiler's dumps of a program, sizes in bytes of one chip.

    Attributes:
      outputs: those that do not alias an argument.
      order: paths of the instructions of the schedule. paths: of all instructions, by name.
    """

    arguments: int
    outputs: int
    scratch: int
    buffers: list[Buffer]
    order: list[str]
    paths: dict[str, str]
    module: hlo.Module


def options(folder: pathlib.Path) -> dict[str, str]:
    """Compiler options that dump the notes into `folder`, which is empty."""
    return {"xla_dump_to": str(folder)}


def read(folder: pathlib.Path) -> Notes:
    """The notes of the largest program in the folder (compiling may make small ones besides).

    Raises:
      InputError: there are none.
    """

    def text(name: str) -> str:
        files = sorted(folder.glob(f"*.after_optimizations{name}.txt"), key=lambda file: file.stat().st_size)
        if not files:
            raise InputError(f"--topology: the installed TPU compiler leaves no notes ({name}); install another libtpu")
        return files[-1].read_text()

    module, assignment = hlo.parse(text("")), text("-buffer-assignment")
    sequence, _, ranges = text("-live-range").partition("BufferLiveRange:")
    names = [match[1] for match in re.finditer(r"^ +\d+:(\S+)$", sequence, re.M)]
    spans = {match[1]: (int(match[2]), int(match[3])) for match in re.finditer(r"^ +(\S+):(\d+)-(\d+)$", ranges, re.M)}
    paths = {op.name: op.path for computation in module.computations.values() for op in computation}
    sizes, buffers, in_scratch = defaultdict(int), [], False
    for line in assignment.splitlines():
        if allocation := _ALLOCATION.match(line):
            allocation_type = allocation[2]
            in_scratch = allocation_type == "preallocated-temp"
            part = "scratch" if in_scratch else "arguments" if allocation_type.startswith("parameter") else "outputs"
            if in_scratch or part == "arguments" or "maybe-live-out" in allocation_type:
                sizes[part] += int(allocation[1])
        elif in_scratch and (value := _VALUE.match(line)) and int(value[3]) >= SMALLEST:
            name = value[1] + (value[2] or "{}")
            if name in spans:
                buffers.append(Buffer(int(value[4]), int(value[3]), *spans[name], value[1], value[5]))
    order = [paths.get(name, "") for name in names]
    return Notes(sizes["arguments"], sizes["outputs"], sizes["scratch"], buffers, order, paths, module)


def peaks(notes: Notes, phases: Sequence[str]) -> dict[str, int]:
    """The peak bytes of temporaries in use during each phase."""
    peak: dict[str, int] = defaultdict(int)
    for path, in_use in zip(notes.order, _in_use(notes.buffers, len(notes.order))):
        if path and in_use > peak[phase := phase_of(path, phases)]:
            peak[phase] = in_use
    return {name: peak[name] for name in (*phases, "other") if peak[name]}


def _in_use(buffers: Sequence[Buffer], length: int) -> list[int]:
    """Bytes in use at each time of the schedule. Values that share memory, as a loop's do, count once."""
    changes = defaultdict(list)
    for buffer in buffers:
        changes[buffer.start].append((buffer, True))
        changes[buffer.end + 1].append((buffer, False))
    live: set[Buffer] = set()
    totals, in_use = [], 0
    for time in range(length):
        if time in changes:
            for buffer, new in changes[time]:
                (live.add if new else live.discard)(buffer)
            in_use = covered = 0
            for buffer in sorted(live):
                end = buffer.offset + buffer.size
                in_use += max(end - max(buffer.offset, covered), 0)
                covered = max(covered, end)
        totals.append(in_use)
    return totals


def largest(notes: Notes, count: int) -> list[dict[str, Any]]:
    """The largest temporaries, one per memory range: bytes, shape and path of the instruction that makes it."""
    buffers: dict[tuple[int, int], Buffer] = {}
    for buffer in sorted(notes.buffers, key=lambda buffer: (-buffer.size, buffer.start)):
        extent = buffer.offset, buffer.size
        if extent not in buffers or not notes.paths.get(buffers[extent].name):
            buffers[extent] = buffer
    top = list(buffers.values())[:count]
    return [{"bytes": buffer.size, "shape": buffer.shape, "path": notes.paths.get(buffer.name, "")} for buffer in top]
