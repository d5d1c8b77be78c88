"""Values of a checkpoint's `config.json`, each checked for its type and range where it is read."""

from collections.abc import Mapping
from typing import Any

from omnir1_jax.errors import InputError
from omnir1_jax.files import json_file

MAX_SIZE = 1 << 20  # of a width, a vocabulary, a window: far beyond any model, small enough to multiply
MAX_COUNT = 1024  # of layers, heads, blocks: what is iterated over


def integer(part: Mapping[str, Any], key: str, where: str, low: int = 1, high: int = MAX_SIZE) -> int:
    """`part[key]`, a whole number from `low` to `high`. `where` names file and section.

    Raises:
      InputError: naming file and key.
    """
    return as_integer(part.get(key), f"{where}{key}", low, high)


def as_integer(value: Any, name: str, low: int = 1, high: int = MAX_SIZE) -> int:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        value = int(value)
    if type(value) is not int or not low <= value <= high:
        raise InputError(f"{name} is {json_file.describe(value)}; it must be a whole number from {low} to {high}")
    return value


def integers(part: Mapping[str, Any], key: str, where: str, low: int = 0, high: int = MAX_SIZE) -> tuple[int, ...]:
    """`part[key]`, a list of at most `MAX_COUNT` such numbers."""
    value = part.get(key)
    if not isinstance(value, list | tuple) or len(value) > MAX_COUNT:
        raise InputError(f"{where}{key} is {json_file.describe(value)}; it must be a list of whole numbers")
    return tuple(as_integer(item, f"{where}{key}[{i}]", low, high) for i, item in enumerate(value))


def number(part: Mapping[str, Any], key: str, where: str, low: float = 0.0, high: float = 1e12) -> float:
    """`part[key]`, a finite number above `low` and at most `high`."""
    value = part.get(key)
    if type(value) not in (int, float) or not low < value <= high:  # so NaN is refused too
        raise InputError(f"{where}{key} is {json_file.describe(value)}; it must be a number above {low:g}, to {high:g}")
    return float(value)


def flag(part: Mapping[str, Any], key: str, where: str) -> bool:
    """`part[key]`, true or false."""
    if not isinstance(part.get(key), bool):
        raise InputError(f"{where}{key} is {json_file.describe(part.get(key))}; it must be true or false")
    return part[key]


def section(part: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """`part[key]`, an object; an empty one if it is absent or null."""
    value = part.get(key)
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{where}{key} is {json_file.describe(value)}; it must be an object")
    return value or {}


def without_null(part: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `part` that are not null: a null counts as absent."""
    return {key: value for key, value in part.items() if value is not None}
