"""Lines of `results.jsonl` as they are read back: each key of the type that it was written with."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from omnir1_jax.errors import InputError
from omnir1_jax.files import json_file

COMMON = ("position", "sample_id", "query", "fault", "completion", "plan", "keyframes", "failures")
MASKS = ("predicted", "scores", "type_id")  # of a line that is scored by its masks


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e300


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_number, value))


def _keyframe(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _natural(value.get("frame"))
        and _text(value.get("description"))
        and _text(value.get("answer"))
        and isinstance(value.get("boxes"), list)
        and all(map(_box, value["boxes"]))
    )


def _scores(value: Any) -> bool:
    return isinstance(value, dict) and all(score is None or _number(score) for score in value.values())


def _type_id(value: Any) -> bool:
    return value is None or _natural(value) or (_text(value) and value.isascii() and value.isdigit() and len(value) < 9)


# What a key's value is, and in words.
_KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "position": (_natural, "a whole number"),
    "sample_id": (_text, "a text"),
    "query": (_text, "a text"),
    "fault": (lambda value: value is None or _text(value), "a text or null"),
    "completion": (_text, "a text"),
    "plan": (lambda value: isinstance(value, list), "a list"),
    "keyframes": (lambda value: isinstance(value, list) and all(map(_keyframe, value)), "a list of keyframes"),
    "failures": (_texts, "a list of texts"),
    "predicted": (lambda value: isinstance(value, bool), "true or false"),
    "scores": (lambda value: value is None or _scores(value), "numbers by name, or null"),
    "official": (lambda value: value is None or _scores(value), "numbers by name, or null"),
    "type_id": (_type_id, "a whole number or null"),
    "answer": (lambda value: value is None or _text(value), "a text or null"),
}


def parse(row: bytes, location: str) -> dict[str, Any]:
    """One line.

    Args:
      row: its bytes.
      location: the file and the line's number, for errors.

    Raises:
      InputError: not an object with a position, or a key of another type than it is written with.
    """
    try:
        line = json_file.parse_object(row, "it")
    except InputError as error:
        raise InputError(f"{location} is damaged ({error}); name another directory with --out") from error
    for key, (test, requirement) in _KEYS.items():
        if (key in line or key == "position") and not test(line.get(key)):
            value = json_file.describe(line.get(key))
            raise InputError(
                f"{location} is damaged ({key} must be {requirement}, not {value}); name another directory with --out"
            )
    return line


def require(lines: Iterable[Mapping[str, Any]], masks: bool, names: Iterable[str], path: object) -> None:
    """Checks that lines hold every key that tables and reports read.

    Args:
      masks: whether the items have masks.
      names: of the scores that an item of the benchmark has.
      path: of the file, for errors.

    Raises:
      InputError: naming the position and the key.
    """
    keys, names = COMMON + MASKS if masks else COMMON, set(names)
    for line in lines:
        missing = [key for key in keys if key not in line]
        if not missing and masks and line["scores"] is not None and line["scores"].keys() != names:
            missing = [f"scores of {', '.join(sorted(names))}"]
        if missing:
            raise InputError(
                f"{path}: the line of position {line['position']} lacks {missing[0]}; name another directory with --out"
            )
