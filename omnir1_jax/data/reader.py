"""The reader that all datasets share: a table of rows, and a function from a row to a clip."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from omnir1_jax.data import metadata
from omnir1_jax.data.refs import BadSample, ClipRef, Reader
from omnir1_jax.errors import InputError


@dataclass(frozen=True)
class TableReader:
    """A `samples.Reader`. `rows`, `make` and `ids` are plain values, so the reader pickles into worker processes."""

    name: str
    split: str
    ids: tuple[str, ...] = field(repr=False)  # one per row, unique: "<dataset>/<split>/<what the row is called>"
    rows: tuple[Any, ...] = field(repr=False)
    make: Callable[[str, Any], ClipRef] = field(
        repr=False
    )  # (sample id, row) -> clip; a partial of a module's function
    clip_of: tuple[Any, ...] = field(repr=False)  # one per row: rows with equal entries share a clip
    notes: tuple[str, ...] = ()  # what was left out on opening, as text

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> ClipRef:
        if not 0 <= position < len(self.rows):
            raise IndexError(f"{self.name}/{self.split} has {len(self.rows)} items; there is no item {position}")
        try:
            return self.make(self.ids[position], self.rows[position])
        except InputError as error:
            raise BadSample(self.ids[position], str(error)) from error

    def clips(self) -> Sequence[Sequence[int]]:
        groups: dict[Any, list[int]] = {}
        for position, key in enumerate(self.clip_of):
            groups.setdefault(key, []).append(position)
        return tuple(tuple(group) for group in groups.values())


@dataclass(frozen=True)
class Subset:
    """A reader of some items of another reader."""

    base: Reader = field(repr=False)
    positions: tuple[int, ...] = field(repr=False)

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def split(self) -> str:
        return self.base.split

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, position: int) -> ClipRef:
        return self.base[self.positions[position]]

    def clips(self) -> Sequence[Sequence[int]]:
        index_of = {position: i for i, position in enumerate(self.positions)}
        groups = (tuple(index_of[p] for p in group if p in index_of) for group in self.base.clips())
        return tuple(group for group in groups if group)


def make_reader(
    name: str,
    split: str,
    items: Iterable[tuple[str, Any, Any]],
    make: Callable[[str, Any], ClipRef],
    location: str,
    notes: tuple[str, ...] = (),
) -> TableReader:
    """A reader over `items` of (name within the split, key of its clip, row); equal names get "#2", "#3", ... .

    Raises `InputError` if there is no item at all.
    """
    seen: dict[str, int] = {}
    ids, clip_of, rows = [], [], []
    for label, clip, row in items:
        seen[label] = seen.get(label, 0) + 1
        ids.append(f"{name}/{split}/{label}" + (f"#{seen[label]}" if seen[label] > 1 else ""))
        clip_of.append(clip)
        rows.append(row)
    if not rows:
        raise InputError(f"{location}: no items for split '{split}' of {name}")
    return TableReader(name, split, tuple(ids), tuple(rows), make, tuple(clip_of), notes)


def in_memory(name: str, split: str, refs: Sequence[ClipRef]) -> TableReader:
    """A reader of clips in memory, each its own clip group."""
    ids = tuple(ref.sample_id for ref in refs)
    return TableReader(name, split, ids, tuple(refs), _itself, tuple(range(len(refs))))


def _itself(sample_id: str, ref: ClipRef) -> ClipRef:
    return ref


def check_source(name: str, root: str, split: str, splits: tuple[str, ...]) -> None:
    """InputError for a split that a dataset does not have, or a root that is not there."""
    check_split(name, split, splits)
    metadata.require_root(root)


def check_split(name: str, split: str, splits: tuple[str, ...]) -> None:
    if split not in splits:
        raise InputError(f"{name} has no split '{split}'; choose one of {', '.join(splits)}")
