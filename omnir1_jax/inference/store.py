"""An evaluation's directory: its identity, one line for each finished item, predictions, results.

run.json       its identity; an evaluation of another identity is refused
results.jsonl  one line per item, appended once its predictions are written
predictions/   PNG trees, each folder complete or absent
pending.json   while it runs: positions of the items that may have predictions without a line
results.json   the tables, at the end
.omnir1.json   the mark with the names of all these (`omnir1_jax.files.folders`)
"""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from omnir1_jax import cli
from omnir1_jax.errors import InputError
from omnir1_jax.files import folders, json_file, regular_file
from omnir1_jax.inference import identity, result_lines
from omnir1_jax.reporting import lines
from omnir1_jax.reporting.example import finite

LINES, RESULTS, RUN, PREDICTIONS = "results.jsonl", "results.json", "run.json", "predictions"
PENDING, TIMING, REPORT, CACHE = "pending.json", "timing.json", "report.html", "cache"
NAMES = (LINES, RESULTS, RUN, PREDICTIONS, PENDING, TIMING, REPORT)
KIND, FLAG = "evaluate", "--out"


class Store:
    """Lines of an evaluation by position; appended to, and read back when it is resumed.

    Attributes:
      interrupted: positions whose predictions an earlier process may have written, without a line.
      adopted: whether an earlier version wrote the folder, which did not note such positions.
    """

    def __init__(self, folder: str | os.PathLike, values: Mapping[str, Any], owner: str = ""):
        """Claims and opens `folder` for the evaluation that `values` (of `identity.identity`) describe.

        Args:
          owner: id of the mark of the evaluation that contains the folder.

        Raises:
          InputError: another evaluation's folder, naming its content or the differences; a damaged line.
        """
        self.folder = pathlib.Path(folder)
        check_folder(folder, values, owner)
        self.adopted = (self.folder / RUN).exists() and "sampling" not in _json(self.folder / RUN)
        folders.claim(folder, KIND, FLAG, names=NAMES, owner=owner, adopt=adopt)
        claim(self.path(RUN), values)
        self.lines = read_lines(self.path(LINES))
        self.interrupted = frozenset(_positions(self.folder / PENDING))
        self._file = (self.folder / LINES).open("ab", buffering=0)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def path(self, name: str) -> pathlib.Path:
        """The path of a file or folder that the evaluation writes, listed in its mark."""
        return pathlib.Path(folders.begin(self.folder, name, FLAG))

    def write_json(self, name: str, value: Any) -> None:
        write_json(self.path(name), value)

    @property
    def predictions(self) -> str:
        return str(self.folder / PREDICTIONS)

    def resume(self, positions: Iterable[int]) -> None:
        """Treats all items without a line as interrupted, if an earlier version did not note which are."""
        if self.adopted:
            self.interrupted |= frozenset(positions) - self.lines.keys()
            self.begin(())

    def begin(self, positions: Iterable[int]) -> None:
        """Notes the items whose predictions are about to be written."""
        self.path(PREDICTIONS)
        self.write_json(PENDING, sorted({*positions, *(self.interrupted - self.lines.keys())}))

    def end(self) -> None:
        """Removes the list of pending items: all have their lines."""
        (self.folder / PENDING).unlink(missing_ok=True)
        folders.forget(self.folder, PENDING, FLAG)

    def add(self, line: Mapping[str, Any]) -> None:
        """Writes the line of an item; no written line is lost if the process is killed."""
        line = finite(line)
        lines.write(self._file, json.dumps(line, ensure_ascii=True, allow_nan=False).encode() + b"\n")
        self.lines[line["position"]] = line


def check_folder(folder: str | os.PathLike, values: Mapping[str, Any] | None = None, owner: str = "") -> None:
    """Raises InputError if `folder` is not one of the evaluation that `values` describe. Changes nothing."""
    if "://" in os.fspath(folder):
        raise InputError(f"--out: {folder} is not on a local disk; name a local directory")
    folders.check(folder, KIND, FLAG, names=NAMES, owner=owner, adopt=adopt)
    if values is not None:
        check(pathlib.Path(folder) / RUN, json.loads(json.dumps(finite(values))))


def adopt(folder: epath.Path) -> Sequence[str] | None:
    """Names that an earlier version, without marks, wrote in an evaluation's folder; None for another folder."""
    run_files = [RUN] if _is_run(folder / RUN) else []
    inner = [
        above.name
        for above in folder.iterdir()
        if above.is_dir()
        and not folders.is_link(above)
        and (_is_run(above / RUN) or any(_is_run(path / RUN) for path in above.iterdir()))
    ]
    if not run_files and not inner:
        return None
    entries = [path for path in folder.iterdir() if not folders.is_link(path)]
    archives = [path.name for path in entries if path.suffix == ".zip" and run_files]
    return [*inner, *archives, *(path.name for path in entries if path.name in (*NAMES, CACHE))]


def _is_run(path: epath.Path) -> bool:
    if not path.is_file() or folders.is_link(path):
        return False
    try:
        return json_file.read_object(path).keys() >= {"options", "task", "weights"}
    except InputError:
        return False


def _positions(path: pathlib.Path) -> list[int]:
    values = json_file.read(path, FLAG) if path.exists() else []
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise InputError(f"--out: {path} is damaged; name another directory")
    return values


def claim(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    """Writes the identity of an evaluation to the file `path`. Values that an older file lacks are added.

    Raises:
      InputError: it holds results of something else, naming the differences.
    """
    values = json.loads(json.dumps(finite(values)))
    check(path, values)
    if not path.exists() or _json(path) != values:
        write_json(path, values)


def check(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    """Raises InputError if the file `path` is there and names results of something else than `values`."""
    if not path.exists():
        return
    if diffs := identity.differences(_json(path), values):
        raise InputError(
            f"--out: {path.parent} holds results with {identity.describe(diffs)}; rerun with the flags it was started "
            "with to resume it, or name another directory"
        )


def _json(path: pathlib.Path) -> Any:
    try:
        return json_file.read_object(path)
    except InputError as error:
        raise InputError(f"--out: {error}; name another directory with --out") from error


def read_lines(path: pathlib.Path) -> dict[int, dict[str, Any]]:
    """Lines by position; one that a kill truncated is dropped from the file.

    Raises:
      InputError: see `result_lines.parse`.
    """
    if not path.exists():
        return {}
    regular_file.require(path, "--out")
    lines, keep = {}, 0
    with path.open("r+b") as file:
        for number, row in enumerate(file, 1):
            if not row.endswith(b"\n"):
                break
            line = result_lines.parse(row, f"{path} line {number}")
            lines[line["position"]] = line
            keep += len(row)
        file.truncate(keep)
    return lines


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes the file atomically."""
    with cli.atomic_path(path) as scratch:
        scratch.write_text(json.dumps(finite(value), indent=2) + "\n")
