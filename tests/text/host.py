"""The reading of `omnir1_jax.text.readers` on the host, with `re` and `json`: what the graph is held to.

Takes the string that `tokenizer.decode(ids, skip_special_tokens=True)` gives. `rules` says where this differs from
what Python alone would read. `max_bytes` is the size of the graph's text buffer, None for no limit.
"""

import json
import re
from typing import Any, NamedTuple

import numpy as np

from omnir1_jax.files import json_file
from omnir1_jax.text import rules, tags
from omnir1_jax.text.rules import Failure, Limits

ASCII_WHITE = " \t\n\v\f\r"
_JOINT = re.compile(r"</think>\s*<answer>", re.ASCII)
_TIME = re.compile(r"(\d+):(\d+)\.(\d+)", re.ASCII)
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"(?:([ \t\n\r]*:)[ \t\n\r]*)?', re.DOTALL)
_NUMBER = re.compile(r"(-?)(\d+)(?:\.(\d+))?(?:[eE]([+-]?)(\d+))?", re.ASCII)
_UNIT = 10**rules.DECIMALS
_MISSING_BOX = (-1.0, -1.0, -1.0, -1.0)


class Piece(NamedTuple):
    """One group of a VOS plan; the fields of `readers.Plan`."""

    failure: Failure
    complete: bool = False
    valid: bool = False
    start: int = 0
    end: int = 0
    first_frame: int = 0
    last_frame: int = 0
    description: bytes = b""
    cut: bool = False


class Plan(NamedTuple):
    """A VOS plan; `pieces` has one entry for each slot of `readers.Plan` that is used."""

    formatted: bool
    answered: bool
    count: int
    short: int
    unread: int
    failure: Failure  # of the text: OK, TOO_LONG or NO_ANSWER
    pieces: list[Piece]


class Answer(NamedTuple):
    """A RefAVS answer."""

    formatted: bool
    answered: bool
    failure: Failure
    description: bytes
    cut: bool


class Box(NamedTuple):
    """The box of one group, -1 where it is missing."""

    failure: Failure
    box: tuple[float, ...]


class BoxAndPoints(NamedTuple):
    """A refCOCOg answer; the fields of `readers.BoxAndPoints`."""

    formatted: bool
    failure: Failure
    box: Box
    points: tuple[Box, Box]
    strict: bool


class _Number(str):
    """The text of a number, kept by json's hooks."""


class _Field(NamedTuple):
    value: Any
    raw: str | None  # of a string: as spelled, escapes included


def _reject(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _formatted(text: str) -> bool:
    """Whether the whole text is `<think>...</think> <answer>...</answer>`."""
    head, tail = "<think>", "</answer>"
    inner = _JOINT.search(text, len(head), max(len(text) - len(tail), 0))
    return inner is not None and text.startswith(head) and text.endswith(tail)


def _answer(text: str) -> str | None:
    content = tags.between(text, "answer")
    return None if content is None else content.strip(ASCII_WHITE)


def _groups(text: str) -> list[str]:
    return ["{" + content + "}" for content in tags.spans(text, "{", "}")]


def _first_object(text: str) -> str | None:
    """The first `{...}` with anything in it, braces that open included."""
    start = text.find("{")
    while start >= 0 and text.startswith("}", start + 1):
        start = text.find("{", start + 1)
    end = text.find("}", start) if start >= 0 else -1
    return text[start : end + 1] if end >= 0 else None


def read_object(group: str) -> dict[str, _Field] | None:
    """A `{...}` group as JSON: fields in dict order without those whose key has an escape. None if it is bad."""
    try:
        pairs = json.loads(
            group,
            parse_int=_Number,
            parse_float=_Number,
            parse_constant=_reject,
            object_pairs_hook=tuple,
        )
    except (ValueError, RecursionError):
        return None
    if any(json_file.deeper(value, rules.MAX_NESTING) for _, value in pairs):
        return None
    # The spelling of keys and values: in good JSON without nested objects, a string before a colon is a key.
    strings = list(_STRING.finditer(group))
    keys = [i for i, found in enumerate(strings) if found[2]]
    fields = {}
    for i, (_, value) in zip(keys, pairs, strict=True):
        spelled = strings[i][1]
        if "\\" not in spelled:
            fields[spelled] = _Field(
                value, strings[i + 1][1] if isinstance(value, str) and not _is_number(value) else None
            )
    return fields


def _is_number(value: Any) -> bool:
    return isinstance(value, _Number)


def read_time(spelled: str) -> int | None:
    """Centiseconds of `mm:ss.ff`, None if the string does not begin so or has an escape."""
    found = None if "\\" in spelled else _TIME.match(spelled)
    if found is None:
        return None
    caps = (rules.MAX_MINUTES, rules.MAX_SECONDS, rules.MAX_FRACTION)
    # Ten digits past the zeros are beyond every cap.
    minutes, seconds, fraction = (min(int(d.lstrip("0")[:10] or "0"), cap) for d, cap in zip(found.groups(), caps))
    return (minutes * 60 + seconds) * 100 + fraction


def _nearest_float32(units: int) -> float:
    """float32 nearest to units / 10**DECIMALS, ties to even."""
    if units == 0:
        return 0.0
    scale = 24 - (units.bit_length() - _UNIT.bit_length())
    while True:
        mantissa, rest = divmod(units << scale, _UNIT) if scale >= 0 else divmod(units, _UNIT << -scale)
        if mantissa < 1 << 24:
            break
        scale -= 1
    whole = _UNIT if scale >= 0 else _UNIT << -scale
    mantissa += 2 * rest > whole or (2 * rest == whole and mantissa % 2 == 1)
    return float(np.ldexp(np.float32(mantissa), -scale))


def read_number(spelled: str) -> tuple[float, int] | None:
    """A JSON number's text as float32 and truncated to int; None beyond MAX_COORDINATE."""
    sign, whole, fraction, exponent_sign, exponent = _NUMBER.fullmatch(spelled).groups(default="")
    exponent = exponent.lstrip("0")
    shift = 10**6 if len(exponent) > 6 else int(exponent or "0")
    point = len(whole) + (-shift if exponent_sign == "-" else shift)
    digits = whole + fraction
    significant = digits.lstrip("0")
    point -= len(digits) - len(significant)
    if not significant or point <= -rules.DECIMALS:
        return 0.0, 0
    if point > 7:
        return None
    places = point + rules.DECIMALS
    units = int(significant[:places].ljust(places, "0"))
    if units > rules.MAX_COORDINATE * _UNIT:
        return None
    factor = -1 if sign else 1
    return factor * _nearest_float32(units), factor * (units // _UNIT)


def read_list(field: _Field | None, k: int) -> tuple[Failure, list[tuple[float, int]]]:
    """A list of k numbers."""
    if field is None or field.value is None:
        return Failure.MISSING_FIELD, []
    items = field.value
    if not (isinstance(items, list) and len(items) == k and all(map(_is_number, items))):
        return Failure.BAD_LIST, []
    read = [read_number(item) for item in items]
    return (Failure.OUT_OF_RANGE, []) if None in read else (Failure.OK, read)


def cut(text: bytes, capacity: int) -> tuple[bytes, bool]:
    """The whole characters that fit."""
    if len(text) <= capacity:
        return text, False
    return text[:capacity].decode(errors="ignore").encode(), True


def lower_strip(description: bytes) -> bytes:
    """As it goes into a prompt: ASCII lower case, ASCII white space stripped."""
    return description.strip(rules.WHITE).lower()


def _too_long(text: str, max_bytes: int | None) -> bool:
    return max_bytes is not None and len(text.encode()) > max_bytes


def _piece(group: str, frames: int, limits: Limits) -> Piece:
    fields = read_object(group)
    if fields is None:
        return Piece(Failure.BAD_JSON)
    start, end, description = (fields.get(key, _Field(None, None)) for key in rules.PLAN_KEYS)
    if start.value is None or end.value is None or description.raw is None:
        return Piece(Failure.MISSING_FIELD)
    start, end = (None if field.raw is None else read_time(field.raw) for field in (start, end))
    if start is None or end is None:
        return Piece(Failure.BAD_TIME)
    told = re.sub("[\ud800-\udfff]", "\ufffd", description.value).encode()
    piece = Piece(Failure.OUT_OF_RANGE, True, False, start, end, 0, 0, *cut(told, limits.description))
    if start > end or end > 50 * frames:
        return piece
    first, last = (min(cs // 50, frames - 1) for cs in (start, end))
    return piece._replace(failure=Failure.OK, valid=True, first_frame=first, last_frame=last)


def read_plan(text: str, frames: int, limits: Limits = rules.DEFAULT, max_bytes: int | None = None) -> Plan:
    """The VOS plan of a completion about a clip of `frames` frames at 2 a second."""
    if _too_long(text, max_bytes):
        return Plan(False, False, 0, 0, 0, Failure.TOO_LONG, [])
    formatted = _formatted(text)
    answer = _answer(text)
    if answer is None:
        return Plan(formatted, False, 0, 0, 0, Failure.NO_ANSWER, [])
    groups = _groups(answer)
    short = [i for i, group in enumerate(groups) if len(group.encode()) < rules.MIN_PIECE_BYTES]
    skipped = set() if limits.groups else set(short[rules.SHORT_SLOTS :])
    unread = max(len(groups) - limits.groups, 0) if limits.groups else 0
    read = [group for i, group in enumerate(groups[: len(groups) - unread]) if i not in skipped]
    pieces = [_piece(group, frames, limits) for group in read]
    return Plan(formatted, True, len(groups) - unread, len(skipped), unread, Failure.OK, pieces)


def read_answer(text: str, limits: Limits = rules.DEFAULT, max_bytes: int | None = None) -> Answer:
    """The RefAVS answer of a completion."""
    if _too_long(text, max_bytes):
        return Answer(False, False, Failure.TOO_LONG, b"", False)
    formatted = _formatted(text)
    answer = _answer(text)
    if answer is None:
        return Answer(formatted, False, Failure.NO_ANSWER, b"", False)
    return Answer(formatted, True, Failure.OK, *cut(answer.encode(), limits.description))


def read_boxes(text: str, slots: int, max_bytes: int | None = None) -> tuple[int, list[Box]]:
    """How many groups a grounding answer has, and the boxes of the first ones."""
    if _too_long(text, max_bytes):
        return 0, [Box(Failure.TOO_LONG, _MISSING_BOX)] * slots
    groups = _groups(text)
    boxes = []
    for group in groups[:slots]:
        fields = read_object(group)
        if fields is None:
            boxes.append(Box(Failure.BAD_JSON, _MISSING_BOX))
            continue
        failure, numbers = read_list(fields.get(rules.BOX_KEYS[0]), 4)
        boxes.append(Box(failure, tuple(value for value, _ in numbers) or _MISSING_BOX))
    return len(groups), boxes


def _no_object(formatted: bool, failure: Failure) -> BoxAndPoints:
    missing = Box(failure, (-1, -1))
    return BoxAndPoints(formatted, failure, Box(failure, _MISSING_BOX), (missing, missing), False)


def read_box_and_points(text: str, max_bytes: int | None = None) -> BoxAndPoints:
    """The refCOCOg answer of a completion."""
    if _too_long(text, max_bytes):
        return _no_object(False, Failure.TOO_LONG)
    formatted = _formatted(text)
    answer = _answer(text)
    if answer is None:
        return _no_object(formatted, Failure.NO_ANSWER)
    group = _first_object(answer)
    if group is None:
        return _no_object(formatted, Failure.ABSENT)
    fields = read_object(group)
    if fields is None:
        return _no_object(formatted, Failure.BAD_JSON)

    def holders(literal: str) -> list[str]:
        return [key for key in fields if literal in key.lower()]

    bbox = fields[holders("bbox")[0]] if holders("bbox") else None
    pointed = [fields[key] for key in holders("points")[:2]] + [None, None]
    failure, numbers = read_list(bbox, 4)
    box = Box(failure, tuple(value for value, _ in numbers) or _MISSING_BOX)
    points = []
    for field in pointed[:2]:
        failure, numbers = read_list(field, 2)
        points.append(Box(failure, tuple(whole for _, whole in numbers) or (-1, -1)))
    sizes = zip(rules.BOX_AND_POINTS_KEYS, (4, 2, 2))
    strict = all(read_list(fields.get(key), k)[0] == Failure.OK for key, k in sizes)
    return BoxAndPoints(formatted, Failure.OK, box, (points[0], points[1]), strict)
