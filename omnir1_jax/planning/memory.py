"""Memory of a compiled program from the notes that the compiler leaves: its buffers, and when each is in use.

`options` makes the compiler write them into a folder, also where the program does not fit; `read` reads them.
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
    """What the compiler says of a program, sizes in bytes of one chip.

    Attributes:
      outputs: those that do not take an argument's place.
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
    """Compiler options under which the notes come to lie in `folder`, which is empty."""
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
    names = [found[1] for found in re.finditer(r"^ +\d+:(\S+)$", sequence, re.M)]
    lives = {found[1]: (int(found[2]), int(found[3])) for found in re.finditer(r"^ +(\S+):(\d+)-(\d+)$", ranges, re.M)}
    paths = {one.name: one.path for computation in module.computations.values() for one in computation}
    sizes, buffers, inside = defaultdict(int), [], False
    for line in assignment.splitlines():
        if head := _ALLOCATION.match(line):
            kind = head[2]
            inside = kind == "preallocated-temp"
            place = "scratch" if inside else "arguments" if kind.startswith("parameter") else "outputs"
            if inside or place == "arguments" or "maybe-live-out" in kind:
                sizes[place] += int(head[1])
        elif inside and (value := _VALUE.match(line)) and int(value[3]) >= SMALLEST:
            name = value[1] + (value[2] or "{}")
            if name in lives:
                buffers.append(Buffer(int(value[4]), int(value[3]), *lives[name], value[1], value[5]))
    order = [paths.get(name, "") for name in names]
    return Notes(sizes["arguments"], sizes["outputs"], sizes["scratch"], buffers, order, paths, module)


def peaks(notes: Notes, phases: Sequence[str]) -> dict[str, int]:
    """Most bytes of temporaries that are in use at a time while each phase runs."""
    most: dict[str, int] = defaultdict(int)
    for path, used in zip(notes.order, _in_use(notes.buffers, len(notes.order))):
        if path and used > most[phase := phase_of(path, phases)]:
            most[phase] = used
    return {name: most[name] for name in (*phases, "other") if most[name]}


def _in_use(buffers: Sequence[Buffer], length: int) -> list[int]:
    """Bytes in use at each time of the schedule. Values of one place, as a loop's are, count once."""
    changes = defaultdict(list)
    for one in buffers:
        changes[one.start].append((one, True))
        changes[one.end + 1].append((one, False))
    live: set[Buffer] = set()
    found, used = [], 0
    for time in range(length):
        if time in changes:
            for one, new in changes[time]:
                (live.add if new else live.discard)(one)
            used = reach = 0
            for one in sorted(live):
                end = one.offset + one.size
                used += max(end - max(one.offset, reach), 0)
                reach = max(reach, end)
        found.append(used)
    return found


def largest(notes: Notes, count: int) -> list[dict[str, Any]]:
    """The largest temporaries, one for each place in memory: bytes, shape and path of what makes it."""
    found: dict[tuple[int, int], Buffer] = {}
    for one in sorted(notes.buffers, key=lambda one: (-one.size, one.start)):
        place = one.offset, one.size
        if place not in found or not notes.paths.get(found[place].name):
            found[place] = one
    chosen = list(found.values())[:count]
    return [{"bytes": one.size, "shape": one.shape, "path": notes.paths.get(one.name, "")} for one in chosen]
