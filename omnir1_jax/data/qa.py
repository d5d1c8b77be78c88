"""What the question-answering sets share."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from omnir1_jax.data import metadata, paths
from omnir1_jax.data.reader import TableReader, make_reader
from omnir1_jax.data.refs import AudioSource, ClipRef, FrameSource
from omnir1_jax.errors import InputError

LETTERS = "ABCDEFGHIJ"


def answer_index(options: Sequence[str], answer: str, where: str) -> int:
    """Which option the answer names in full. Raises `InputError` if none does."""
    wanted = answer.strip()
    for index, option in enumerate(options):
        if option.strip() == wanted:
            return index
    raise InputError(f"{where}: the answer {answer[:60]!r} is none of the options")


def letter_index(options: Sequence[str], answer: str, where: str) -> int:
    """Which option the letter names. Raises `InputError`."""
    index = LETTERS.find(answer.strip()) if len(answer.strip()) == 1 else -1
    if not 0 <= index < len(options):
        raise InputError(f"{where}: the answer {answer[:60]!r} is no letter of the {len(options)} options")
    return index


def get_options(row: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    options = metadata.get_list(row, key, str, where)
    if not 2 <= len(options) <= len(LETTERS):
        raise InputError(f"{where}.{key}: expected 2 to {len(LETTERS)} options, found {len(options)}")
    return tuple(options)


def media_file(root: str, names: Sequence[str], where: str) -> str:
    """The first of `names` (within `root`) that is there.

    Raises `InputError` naming the one that is a link to nothing, else the one first looked for.
    """
    candidates = [paths.inside(root, name, where) for name in names]
    for path in candidates:
        if paths.exists(path):
            return path
    broken = next((path for path in candidates if os.path.islink(path)), candidates[0])
    raise InputError(f"{where}: {paths.missing(broken)}")


def clip(
    dataset: str,
    sample_id: str,
    question: str,
    frames: FrameSource,
    audio: AudioSource | None,
    options: tuple[str, ...],
    answer: str,
    answer_index: int | None,
    **extra: Any,
) -> ClipRef:
    """A clip of family "qa". `extra` always has options (as the dataset spells them), answer and answer_index."""
    common = {"options": options, "answer": answer, "answer_index": answer_index}
    return ClipRef(dataset, sample_id, "qa", question, frames, audio, extra={**common, **extra})


def reader(
    dataset: str,
    split: str,
    path: str,
    rows: Sequence[tuple[str, dict[str, Any]]],
    find_media: Callable[[dict[str, Any]], object],
    make: Callable[[str, dict[str, Any]], ClipRef],
    notes: tuple[str, ...] = (),
) -> TableReader:
    """A reader over (name, row), after checking that every row's media are there (on a remote root, the first row's).

    `find_media` raises `InputError` naming a missing file; the error says how many rows miss theirs.
    """
    errors = []
    media = []
    for _, row in rows:
        try:
            media.append(find_media(row))
        except InputError as error:
            errors.append(error)
    if errors:
        more = f" ({len(errors)} of {len(rows)} items have such a fault)" if len(errors) > 1 else ""
        raise InputError(f"{errors[0]}{more}") from errors[0]
    items = [(label, repr(medium), row) for (label, row), medium in zip(rows, media)]
    return make_reader(dataset, split, items, make, path, notes)
