"""Lists of prompts with what samples of a policy earned: which of a reader's items are worth a group of completions.

A line a prompt: {"task": "vos", "sample_id": "revos/train/...", "mean": 1.2, "spread": 0.4, "rewards": [...]}.
"""

import math
from collections.abc import Mapping
from typing import Any

from omnir1_jax.data import paths
from omnir1_jax.data.reader import Subset
from omnir1_jax.data.refs import BadSample, Reader
from omnir1_jax.errors import InputError
from omnir1_jax.files import json_file


def read(path: str, setting: str) -> dict[str, float]:
    """The spread of each prompt of a list, by sample id; of one that is listed twice the last.

    Raises:
      InputError: no such file, or a line that is none of a list; names the setting, file and line.
    """
    try:
        rows = paths.read_bytes(path).splitlines()
    except (OSError, ValueError) as error:  # of a path that is none
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{setting}: {path!r} cannot be read ({reason})") from error
    found = {}
    for number, row in enumerate(rows, 1):
        line = json_file.parse_object(row, f"{setting}: {path}, line {number}")
        name, spread = line.get("sample_id"), line.get("spread")
        if not isinstance(name, str) or type(spread) not in (int, float) or not math.isfinite(spread):
            raise InputError(f"{setting}: {path}, line {number} has no sample_id with a finite spread")
        found[name] = float(spread)
    return found


def kept(reader: Reader, spreads: Mapping[str, float], least: float) -> Reader:
    """The items of a reader whose spread is at least so large; those that are not in the list stay."""
    stay = [position for position in range(len(reader)) if spreads.get(_name(reader, position), math.inf) >= least]
    return reader if len(stay) == len(reader) else Subset(reader, tuple(stay))


def _name(reader: Reader, position: int) -> str:
    ids: Any = getattr(reader, "ids", None)
    if ids is not None:
        return ids[position]
    try:
        return reader[position].sample_id
    except BadSample as error:
        return error.sample_id
