"""An evaluation's directory: what it is of, a line for each item that is done, predictions, results.

run.json       the settings; an evaluation with others is not taken up here
results.jsonl  one line an item, appended once its predictions are written
predictions/   PNG trees, each folder whole or not there
results.json   the tables, at the end
"""

import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from omnir1_jax import cli, json_file, regular_file
from omnir1_jax.errors import InputError
from omnir1_jax.inference import identity, result_lines
from omnir1_jax.reporting import lines
from omnir1_jax.reporting.example import finite

LINES, RESULTS, RUN, PREDICTIONS = "results.jsonl", "results.json", "run.json", "predictions"


class Store:
    """Lines of an evaluation by position; appended to, and read back when it is taken up again."""

    def __init__(self, folder: str | os.PathLike, values: Mapping[str, Any]):
        """Opens `folder` for the evaluation that `values` (of `identity.identity`) describe.

        Raises:
          InputError: another evaluation's directory, naming the first difference; a damaged line.
        """
        self.folder = pathlib.Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"--out: {folder} is a file; name a directory")
        self.folder.mkdir(parents=True, exist_ok=True)
        claim(self.folder / RUN, values)
        for left in sorted(self.folder.rglob(".*.part*")):  # what a killed run was writing
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        self._path = self.folder / LINES
        self.lines = read_lines(self._path)
        self._file = self._path.open("ab", buffering=0)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def predictions(self) -> str:
        return str(self.folder / PREDICTIONS)

    def add(self, line: Mapping[str, Any]) -> None:
        """Writes the line of an item. A killed process loses none that was written."""
        line = finite(line)
        lines.write(self._file, json.dumps(line, ensure_ascii=True, allow_nan=False).encode() + b"\n")
        self.lines[line["position"]] = line


def claim(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    """Writes to the file `path` what its directory holds results of. Values that an older file lacks are added.

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
    if found := identity.differences(_json(path), values):
        raise InputError(
            f"--out: {path.parent} holds results with {identity.describe(found)}; rerun with the flags it was started "
            "with to resume it, or name another directory"
        )


def _json(path: pathlib.Path) -> Any:
    try:
        return json_file.read_object(path)
    except InputError as error:
        raise InputError(f"--out: {error}; name another directory with --out") from error


def read_lines(path: pathlib.Path) -> dict[int, dict[str, Any]]:
    """Lines by position; one that a kill cut short is taken off the file.

    Raises:
      InputError: see `result_lines.parse`.
    """
    if not path.exists():
        return {}
    regular_file.require(path, "--out")
    found, keep = {}, 0
    with path.open("r+b") as file:
        for number, row in enumerate(file, 1):
            if not row.endswith(b"\n"):
                break
            line = result_lines.parse(row, f"{path} line {number}")
            found[line["position"]] = line
            keep += len(row)
        file.truncate(keep)
    return found


def write_json(path: pathlib.Path, value: Any) -> None:
    """Whole or not at all."""
    with cli.atomic_path(path) as scratch:
        scratch.write_text(json.dumps(finite(value), indent=2) + "\n")
