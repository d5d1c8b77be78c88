"""The files of a run's work directory, polled while the run appends to them."""

import dataclasses
import math
import pathlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from omnir1_jax.errors import InputError
from omnir1_jax.files import json_file, regular_file
from omnir1_jax.reporting import lines
from omnir1_jax.reporting.log import METRICS, PICTURES, ROLLOUT_PARTS, ROLLOUTS, file_name
from omnir1_jax.reporting.parts import Copy
from omnir1_jax.tasks.description import Number

BLOCK = 1 << 20  # bytes of a file that are parsed at a time
TAIL = 256  # bytes that are compared to detect that a file was truncated and appended to again
QUERY_CHARACTERS = 200  # characters of a query in the index of rollouts
LOCAL_SECONDS, REMOTE_SECONDS = 1.0, 20.0  # between two reads of the files


class GrowingFile:
    """A file to which another process appends lines, and which it truncates when it resumes."""

    def __init__(self, path: pathlib.Path):
        self._path, self._offset, self._lines, self._tail = path, 0, 0, None

    def blocks(self) -> Iterator[tuple[int, int, bytes]]:
        """New blocks: offset, number of lines before it, and complete lines. Offset 0: what was read before is void."""
        if not self._path.exists():
            return
        with regular_file.require(self._path).open("rb") as file:
            if self._tail is not None:
                file.seek(self._offset - len(self._tail))
            if self._tail is None or file.read(len(self._tail)) != self._tail:
                self._offset, self._lines, self._tail = 0, 0, b""
                file.seek(0)
                yield 0, 0, b""
            rest = b""
            while block := file.read(BLOCK):
                block = rest + block
                end = block.rfind(b"\n") + 1
                complete, rest = block[:end], block[end:]
                if complete:
                    yield self._offset, self._lines, complete
                    self._offset += end
                    self._lines += complete.count(b"\n")
                    self._tail = (self._tail + complete)[-TAIL:]


@dataclasses.dataclass
class Group:
    """The completions of one prompt in one step: consecutive lines of `rollouts.jsonl`.

    Attributes:
      query: its beginning.
      offset, size: bytes of the lines in the file.
      rewards, failures: of each completion; a reward is None where it was not finite.
    """

    step: int
    task: str
    sample_id: str
    query: str
    offset: int
    size: int = 0
    rewards: list[Number | None] = dataclasses.field(default_factory=list)
    failures: list[tuple[str, ...]] = dataclasses.field(default_factory=list)

    def known(self) -> list[Number]:
        """Rewards that are finite."""
        return [reward for reward in self.rewards if reward is not None]

    def spread(self) -> Number:
        """The difference between the highest and the lowest reward."""
        return max(self.known(), default=0.0) - min(self.known(), default=0.0)


class RunFiles:
    """A run's settings, steps and rollouts as of the last `refresh`.

    Attributes:
      steps: the rows of `metrics.jsonl`. groups: an index of `rollouts.jsonl`. config, summary: empty if missing.
      pictured: steps that have pictures. version: number that changes whenever a file has changed.
    """

    def __init__(self, workdir: epath.PathLike):
        """A work directory, which may be on `gs://`: what is appended to is then copied to this machine."""
        self.folder = epath.Path(workdir)
        self.steps: list[dict[str, Any]] = []
        self.groups: list[Group] = []
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.pictured: set[int] = set()
        self.version, self.logged_at = 0, 0.0
        self._read_at = -math.inf
        self._copies, local = [], pathlib.Path(self.folder)
        if "://" in str(workdir):
            self._scratch = tempfile.TemporaryDirectory(prefix="omnir1_jax_run_")
            local = pathlib.Path(self._scratch.name)
            parts = {METRICS: None, ROLLOUTS: self.folder / ROLLOUT_PARTS}
            self._copies = [Copy(local / name, self.folder / name, folder) for name, folder in parts.items()]
        self._rollouts = local / ROLLOUTS
        self._files = GrowingFile(local / METRICS), GrowingFile(self._rollouts)

    def refresh(self) -> None:
        """Reads new lines, unless that was just done.

        Raises:
          InputError: a file was not written by the log.
        """
        if time.monotonic() - self._read_at < (REMOTE_SECONDS if self._copies else LOCAL_SECONDS):
            return
        for copy in self._copies:
            copy.update()
        changed = self._read_steps() | self._read_rollouts()
        files = _json(self.folder / "config.json"), _json(self.folder / "summary.json"), self._pictured()
        changed |= files != (self.config, self.summary, self.pictured)
        self.config, self.summary, self.pictured = files
        self.version += changed
        self._read_at = time.monotonic()

    def _read_steps(self) -> bool:
        changed = False
        for offset, line_count, block in self._files[0].blocks():
            changed = True
            if not offset:
                self.steps.clear()
            self.steps += lines.read_metrics(block, str(self.folder / METRICS), line_count + 1)
        if changed:
            self.logged_at = (self.folder / METRICS).stat().mtime
        return changed

    def _read_rollouts(self) -> bool:
        changed, name = False, str(self.folder / ROLLOUTS)
        for offset, line_count, block in self._files[1].blocks():
            changed = True
            if not offset:
                self.groups.clear()
            sizes = [len(row) + 1 for row in block.split(b"\n")[:-1]]
            rows = [_checked(row, name) for row in lines.read(block, name, line_count + 1)]
            for row, size in zip(rows, sizes):
                self._add(row, offset, size)
                offset += size
        return changed

    def _add(self, row: Mapping[str, Any], offset: int, size: int) -> None:
        task, sample_id = str(row.get("family", "")), str(row.get("sample_id", ""))
        query = str(row.get("query", ""))[:QUERY_CHARACTERS]
        key, last = (row["step"], task, sample_id, query), self.groups[-1] if self.groups else None
        if last is None or key != (last.step, last.task, last.sample_id, last.query):
            last = Group(*key, offset)
            self.groups.append(last)
        last.size += size
        last.rewards.append(row.get("reward"))
        last.failures.append(tuple(map(str, row.get("failures") or ())))

    def rollouts(self, group: Group) -> list[dict[str, Any]]:
        """The complete lines of a group.

        Raises:
          InputError: the file was truncated since `refresh`.
        """
        name = str(self.folder / ROLLOUTS)
        with self._rollouts.open("rb") as file:
            file.seek(group.offset)
            rows = [_checked(row, name) for row in lines.read(file.read(group.size), name)]
        if len(rows) != len(group.rewards):
            raise InputError(f"{name} was truncated while it was read, by a run that resumes; try again")
        return rows

    def _pictured(self) -> set[int]:
        folder = self.folder / PICTURES
        names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
        return {int(name) for name in names if name.isdecimal()}

    def pictures(self, group: Group) -> list[str]:
        """Names of the pictures of a group, in the folder of its step."""
        if group.step not in self.pictured:
            return []
        names = [path.name for path in (self.folder / PICTURES / str(group.step)).iterdir()]
        split = {name: name.partition("_") for name in names}
        ending = f"{file_name(group.sample_id)}.png"
        return sorted(name for name, (number, _, rest) in split.items() if number.isdecimal() and rest == ending)


def _json(path: epath.Path) -> dict[str, Any]:
    return json_file.read_object(path) if path.exists() else {}


_KINDS = {"plan": list, "keyframes": list, "failures": list, "rewards": dict}


def _checked(row: dict[str, Any], name: str) -> dict[str, Any]:
    """Checks the types of a rollout's fields that the page computes with.

    Raises:
      InputError: a field has another type, or is not finite.
    """
    step = row["step"]
    plan, keyframes, failures, rewards = (row.get(key) or kind() for key, kind in _KINDS.items())
    is_valid = type(step) is int and 0 <= step < 10**15 and isinstance(failures, list) and isinstance(rewards, dict)
    is_valid = is_valid and all(
        isinstance(part, list) and all(isinstance(x, dict) for x in part) for part in (plan, keyframes)
    )
    numbers = [row.get("reward"), row.get("advantage"), *(rewards.values() if is_valid else ())]
    if not is_valid or not all(x is None or (type(x) in (int, float) and abs(x) < 1e300) for x in numbers):
        problem = "has no lists of keyframes and failures, or no rewards"
        raise InputError(f"{name}: a rollout of step {json_file.describe(step)} {problem}")
    return row
