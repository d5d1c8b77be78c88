"""Difficulty lists: prompts with the rewards that a policy's samples earned, to choose the items worth training on.

One line per prompt: {"task": "vos", "sample_id": "revos/train/...", "mean": 1.2, "spread": 0.4, "rewards": [...]}.
"""

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from omnir1_jax.data import paths
from omnir1_jax.data.reader import Subset
from omnir1_jax.data.refs import BadSample, Reader
from omnir1_jax.errors import InputError
from omnir1_jax.files import json_file


class Measured(NamedTuple):
    """What the completions of a prompt earned: mean and standard deviation."""

    mean: float
    spread: float


@dataclass(frozen=True, eq=False)
class Order:
    """How the epochs of a family run through its items, `scores` having one entry per item.

    "weighted": an item is drawn in proportion to its score, its expected count rounded up or down in each epoch.
    "easy_first": the first epoch goes from the highest score to the lowest, later ones are shuffled (as SortaGrad of
    arXiv 1512.02595 does by length).
    """

    mode: str
    scores: Float[np.ndarray, "items"] = field(repr=False)

    def epoch(self, rng: np.random.Generator, number: int) -> Int[np.ndarray, "items"]:
        """The items of an epoch, in order."""
        count = len(self.scores)
        if self.mode == "weighted":
            ends = np.floor(np.cumsum(self.scores) * (count / self.scores.sum()) + rng.random())
            ends[-1] = count
            return rng.permutation(np.repeat(np.arange(count), np.diff(ends, prepend=0).astype(int)))
        order = rng.permutation(count)
        return order if number else order[np.argsort(-self.scores[order], kind="stable")]

    @property
    def digest(self) -> str:
        """A digest of what decides the order."""
        return f"{self.mode} {zlib.crc32(self.scores.tobytes()):08x}"


def order(
    mode: str,
    readers: Sequence[Reader],
    items: Iterable[tuple[int, Sequence[int]]],
    measured: Mapping[str, Measured],
    setting: str,
) -> Order:
    """The order of a family's items by a list. An item's score is the mean over its listed prompts; an item with none
    gets the mean of all.

    Args:
      items: (reader, positions), see `pipeline.items`.

    Raises:
      InputError: no item is listed, or for "weighted" none spreads; names the setting.
    """
    score = lambda name: getattr(measured[name], "spread" if mode == "weighted" else "mean")
    groups = [[name for p in positions if (name := prompt(readers[r], p)) in measured] for r, positions in items]
    scores = np.array([np.mean([score(name) for name in group]) if group else np.nan for group in groups])
    if np.isnan(scores).all():
        raise InputError(f"{setting}: {mode!r}, but the difficulty list has none of the prompts")
    scores = np.where(np.isnan(scores), np.nanmean(scores), scores)
    if mode == "weighted" and not scores.sum() > 0:
        raise InputError(f"{setting}: 'weighted', but no prompt of the difficulty list spreads")
    return Order(mode, scores)


def read(path: str, setting: str) -> dict[str, Measured]:
    """Mean and spread of each prompt, by sample id; if a prompt is listed twice, the last line counts.

    Raises:
      InputError: no such file, or an invalid line; names the setting, file and line.
    """
    try:
        rows = paths.read_bytes(path).splitlines()
    except (OSError, ValueError) as error:  # ValueError: an invalid path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{setting}: {path!r} cannot be read ({reason})") from error
    measured = {}
    for number, row in enumerate(rows, 1):
        record = json_file.parse_object(row, f"{setting}: {path}, line {number}")
        name, values = record.get("sample_id"), Measured(record.get("mean"), record.get("spread"))
        numbers = all(type(value) in (int, float) and math.isfinite(value) for value in values)
        if not isinstance(name, str) or not numbers or values.spread < 0:
            raise InputError(f"{setting}: {path}, line {number} has no sample_id with a finite mean and spread")
        measured[name] = Measured(*map(float, values))
    return measured


def kept(reader: Reader, measured: Mapping[str, Measured], min_spread: float) -> Reader:
    """The items of a reader whose spread is at least `min_spread`, and those that are not listed."""
    spread = lambda name: measured[name].spread if name in measured else math.inf
    positions = [position for position in range(len(reader)) if spread(prompt(reader, position)) >= min_spread]
    return reader if len(positions) == len(reader) else Subset(reader, tuple(positions))


def prompt(reader: Reader, position: int) -> str:
    """The sample id of an item, also of one that cannot be read."""
    ids: Any = getattr(reader, "ids", None)
    if ids is not None:
        return ids[position]
    try:
        return reader[position].sample_id
    except BadSample as error:
        return error.sample_id
