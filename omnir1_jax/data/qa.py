"""What the question-answering sets share."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from omnir1_jax.data import metadata, paths
from omnir1_jax.data.reader import TableReader, make_reader
from omnir1_jax.data.refs import AudioSource, ClipRef, FrameSource, VideoAudio, VideoFile
from omnir1_jax.errors import InputError

LETTERS = "ABCDEFGHIJ"


def answer_index(options: Sequence[str], answer: str, location: str) -> int:
    """Which option the answer names in full. Raises `InputError` if none does."""
    text = answer.strip()
    for index, option in enumerate(options):
        if option.strip() == text:
            return index
    raise InputError(f"{location}: the answer {answer[:60]!r} is none of the options")


def letter_index(options: Sequence[str], answer: str, location: str) -> int:
    """Which option the letter names. Raises `InputError`."""
    index = LETTERS.find(answer.strip()) if len(answer.strip()) == 1 else -1
    if not 0 <= index < len(options):
        raise InputError(f"{location}: the answer {answer[:60]!r} is not a letter of the {len(options)} options")
    return index


def get_options(row: dict[str, Any], key: str, location: str) -> tuple[str, ...]:
    options = metadata.get_list(row, key, str, location)
    if not 2 <= len(options) <= len(LETTERS):
        raise InputError(f"{location}.{key}: expected 2 to {len(LETTERS)} options, found {len(options)}")
    return tuple(options)


def media_file(root: str, names: Sequence[str], location: str) -> str:
    """The first of `names` (within `root`) that is there.

    Raises `InputError` naming the one that is a broken link, else the first.
    """
    candidates = [paths.inside(root, name, location) for name in names]
    for path in candidates:
        if paths.exists(path):
            return path
    broken = next((path for path in candidates if os.path.islink(path)), candidates[0])
    raise InputError(f"{location}: {paths.missing(broken)}")


class Question(NamedTuple):
    """A question with its media, checked.

    Attributes:
      location: file and row, for messages.
      media: for each required file, its possible names within the root.
      options: as the dataset spells them. answer_index: which of them is right, None where that is not known.
      extra: further fields of the dataset.
    """

    location: str
    text: str
    media: tuple[tuple[str, ...], ...]
    options: tuple[str, ...]
    answer: str
    answer_index: int | None
    extra: Mapping[str, Any]


Sources = Callable[..., tuple[FrameSource, AudioSource | None]]


def reader(
    dataset: str,
    split: str,
    path: str,
    root: str,
    questions: Sequence[tuple[str, Question]],
    sources: Sources,
    notes: tuple[str, ...] = (),
) -> TableReader:
    """A reader over (name, question).

    Args:
      sources: (question, path of each of its media) -> frames and sound. A function of a module.
    """
    find = lambda question: tuple(media_file(root, names, question.location) for names in question.media)
    return checked(dataset, split, path, questions, find, functools.partial(_clip, dataset, root, sources), notes)


def _clip(dataset: str, root: str, sources: Sources, sample_id: str, question: Question) -> ClipRef:
    files = [media_file(root, names, question.location) for names in question.media]
    right = {key: getattr(question, key) for key in ("options", "answer", "answer_index")}
    return ClipRef(
        dataset, sample_id, "qa", question.text, *sources(question, *files), extra={**right, **question.extra}
    )


def video_with_sound(question: Question, video: str) -> tuple[VideoFile, VideoAudio]:
    """Sources of a film that may be silent."""
    return VideoFile(video), VideoAudio(video, required=False)


def table(dataset: str, root: str, folders: Sequence[str], endings: Sequence[str]) -> str:
    """The first file with one of the endings in one of the folders. Raises `InputError`."""
    if files := paths.matching(root, *(f"{folder}*.{ending}" for folder in folders for ending in endings)):
        return files[0]
    raise InputError(f"{dataset}: no table of questions ({', '.join(f'*.{e}' for e in endings)}) in {root}")


def checked(
    dataset: str,
    split: str,
    path: str,
    rows: Sequence[tuple[str, Any]],
    find_media: Callable[[Any], object],
    make: Callable[[str, Any], ClipRef],
    notes: tuple[str, ...] = (),
) -> TableReader:
    """A reader over (name, row), after checking that every row's media are there.

    `find_media` raises `InputError` naming a missing file; the error says how many rows miss theirs.
    """
    errors, media = [], []
    for _, row in rows:
        try:
            media.append(find_media(row))
        except InputError as error:
            errors.append(error)
    if errors:
        suffix = f" ({len(errors)} of {len(rows)} items have such a fault)" if len(errors) > 1 else ""
        raise InputError(f"{errors[0]}{suffix}") from errors[0]
    items = [(label, repr(medium), row) for (label, row), medium in zip(rows, media)]
    return make_reader(dataset, split, items, make, path, notes)
