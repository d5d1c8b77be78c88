"""JSON-lines files in which every line has a step: appended to, truncated on a resume, read whatever the size."""

import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from omnir1_jax.errors import InputError
from omnir1_jax.files import json_file, regular_file

# Line ends of `str.splitlines` that JSON does not escape.
_BREAKS = {chr(code): f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}
# Every line begins with its step, so that truncating need not parse a rollout of many kilobytes.
_STEP = re.compile(rb'\{"step": ?(\d{1,18})[,}]')  # more digits are not a step


def truncate(path: pathlib.Path, last_step: int) -> None:
    """Drops lines beyond `last_step`, and an incomplete last line. A missing file stays missing.

    Raises:
      InputError: another line does not begin with a step.
    """
    if not path.exists():
        return
    regular_file.require(path)
    with path.open("r+b") as file:
        keep = 0
        for number, row in enumerate(file, 1):
            match = _STEP.match(row)
            if not row.endswith(b"\n") or (match and int(match[1]) > last_step):
                break
            if not match:
                raise InputError(f"{path} line {number} does not begin with its step; repair the line or move the file")
            keep += len(row)
        file.truncate(keep)


def append(file: BinaryIO, row: Mapping[str, Any]) -> None:
    """Writes one row, which begins with its step."""
    assert next(iter(row)) == "step"
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    for line_break, escape in _BREAKS.items():  # several times faster than `str.translate`
        text = text.replace(line_break, escape)
    write(file, text.encode("utf-8", "replace") + b"\n")


def write(file: BinaryIO, row: bytes) -> None:
    """Writes one line in a single call, so that no written line is lost if the process is killed.

    Args:
      file: opened with "ab" and no buffer.

    Raises:
      OSError: with the file's name.
    """
    size, rest = os.fstat(file.fileno()).st_size, memoryview(row)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        os.truncate(file.fileno(), size)
        raise OSError(error.errno, error.strerror, file.name) from error


def sync(file: BinaryIO) -> None:
    """Waits until the lines are on the disk."""
    os.fsync(file.fileno())


def read_metrics(data: bytes, name: str, first: int = 1) -> Iterator[dict[str, Any]]:
    """`read` of a log of metrics: a step, and numbers by name (null where one was not finite), or a task's name.

    Raises:
      InputError: also where a value is none of these.
    """
    for row in read(data, name, first):
        for key, value in row.items():
            number = type(value) is float or (type(value) is int and abs(value) < 10**300)  # larger: not a float
            is_valid = value is None or number or (isinstance(value, str) and "/" not in key)
            if key in ("step", "seconds"):
                is_valid = type(value) in (int, float) and 0 <= value < 1e15
            if not is_valid:
                location = f"{name}: {key[:80]!r} of step {json_file.describe(row['step'])}"
                raise InputError(f"{location} is {json_file.describe(value)}, not a number")
        yield row


def read(data: bytes, name: str, first: int = 1) -> Iterator[dict[str, Any]]:
    """The objects of a file; a last line without its end is left out.

    Args:
      first: the number that its first line has in messages.

    Raises:
      InputError: another line is not a JSON object.
    """
    for number, row in enumerate(data.split(b"\n")[:-1], first):
        try:
            value = json_file.parse_object(row, f"{name} line {number}")
        except InputError as error:
            raise InputError(f"{error}; repair the line or move the file") from error
        if "step" not in value:
            raise InputError(f"{name} line {number} has no step; repair the line or move the file")
        yield value
