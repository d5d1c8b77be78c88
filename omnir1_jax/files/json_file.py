"""JSON files of the user; every fault is an error of one line."""

import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from omnir1_jax.errors import InputError
from omnir1_jax.files import regular_file

MAX_DEPTH = 64  # maximum nesting, because later code (copies, configs, messages) recurses


def parse(data: bytes | str, location: str) -> Any:
    """The value of a JSON text in UTF-8, with or without a byte order mark.

    Args:
      data: the text.
      location: name of the text for errors: the file, and the line or key within it.

    Raises:
      InputError: it is not UTF-8, not JSON (with the position), or nested deeper than `MAX_DEPTH`.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data.removeprefix("\ufeff")
        value = json.loads(text)
    except json.JSONDecodeError as error:
        position = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise InputError(f"{location} is not JSON: {error.msg} at {position}") from error
    except ValueError as error:  # not UTF-8, or a number of thousands of digits
        raise InputError(f"{location} is not JSON: {error}") from error
    except RecursionError as error:
        raise InputError(f"{location}: nested deeper than {MAX_DEPTH} levels") from error
    if deeper(value, MAX_DEPTH):
        raise InputError(f"{location}: nested deeper than {MAX_DEPTH} levels")
    return value


def deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects are nested more than `depth` levels deep; never recurses."""
    level = [value] if isinstance(value, list | dict) else []
    for _ in range(depth):
        if not level:
            return False
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, list | dict)
        ]
    return bool(level)


def read(path: epath.PathLike, label: str = "") -> Any:
    """The value in a JSON file.

    Args:
      path: local or remote; a regular file.
      label: which flag names the file, for the message ("--summary").

    Raises:
      InputError: see `parse` and `regular_file.read_bytes`.
    """
    return parse(regular_file.read_bytes(path, label), f"{label}: {path}" if label else str(path))


def parse_object(data: bytes | str, location: str) -> dict[str, Any]:
    """`parse` that requires an object.

    Raises:
      InputError: it is not an object.
    """
    value = parse(data, location)
    if not isinstance(value, dict):
        raise InputError(f"{location} is not a JSON object, but {describe(value)}")
    return value


def read_object(path: epath.PathLike, label: str = "") -> dict[str, Any]:
    """`read` that requires an object.

    Raises:
      InputError: it is not an object.
    """
    return parse_object(regular_file.read_bytes(path, label), f"{label}: {path}" if label else str(path))


def lines(data: bytes, source: str) -> Iterator[tuple[str, Any]]:
    """The values of JSON lines, each with its location ("FILE line 3") for messages; empty lines are skipped.

    Raises:
      InputError: see `parse`.
    """
    for number, row in enumerate(data.split(b"\n"), 1):
        if row.strip():
            location = f"{source} line {number}"
            yield location, parse(row, location)


def describe(value: Any) -> str:
    """A value described in a few words for messages: 'a list', "'abc'"."""
    if isinstance(value, str):
        return repr(value[:40])
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**18:
        return f"a number of {len(str(abs(value)))} digits"
    return json.dumps(value)
