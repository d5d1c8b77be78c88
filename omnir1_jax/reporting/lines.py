"""JSON-lines files in which every line has a step: appended to, cut back on a resume, read whatever the size."""

import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from omnir1_jax import json_file
from omnir1_jax.errors import InputError

# What `str.splitlines` takes for the end of a line and JSON does not escape.
_BREAKS = str.maketrans({code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)})
# Every line begins with its step, so that cutting need not parse a rollout of many kilobytes.
_STEP = re.compile(rb'\{"step": ?(\d+)[,}]')


def cut(path: pathlib.Path, last_step: int) -> None:
    """Drops lines beyond `last_step`, and a last line that a kill cut short. A missing file stays missing.

    Raises:
      InputError: another line does not begin with a step.
    """
    if not path.exists():
        return
    with path.open("r+b") as file:
        keep = 0
        for number, row in enumerate(file, 1):
            found = _STEP.match(row)
            if not row.endswith(b"\n") or (found and int(found[1]) > last_step):
                break
            if not found:
                raise InputError(f"{path} line {number} does not begin with its step; repair the line or move the file")
            keep += len(row)
        file.truncate(keep)


def append(file: BinaryIO, row: Mapping[str, Any]) -> None:
    """Writes one line, whole, and hands it to the system: a killed process loses none that was written."""
    assert next(iter(row)) == "step"
    text = json.dumps(row, ensure_ascii=False, allow_nan=False).translate(_BREAKS)
    file.write(text.encode("utf-8", "replace") + b"\n")
    file.flush()


def sync(file: BinaryIO) -> None:
    """Waits until the lines are on the disk."""
    file.flush()
    os.fsync(file.fileno())


def read(data: bytes, name: str) -> Iterator[dict[str, Any]]:
    """The objects of a file; a last line without its end is left out.

    Raises:
      InputError: another line is not a JSON object.
    """
    for number, row in enumerate(data.split(b"\n")[:-1], 1):
        try:
            yield json_file.parse_object(row, f"{name} line {number}")
        except InputError as error:
            raise InputError(f"{error}; repair the line or move the file") from error
