"""Parses completions in the graph, as the authors' code does: plans, descriptions, boxes, boxes with points.

`rules` says where this differs from `re` and `json` on the same text.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from omnir1_jax.text import automaton, rules, scan, strings, values
from omnir1_jax.text.rules import Failure, Limits
from omnir1_jax.text.vocab import Text


class Plan(NamedTuple):
    """VOS plans: one slot for each group of an answer, up to the limits."""

    formatted: Bool[Array, "n"]  # <think>...</think> <answer>...</answer> and nothing else
    answered: Bool[Array, "n"]
    count: Int[Array, "n"]  # of groups: those in the slots and the short ones
    short: Int[Array, "n"]  # groups too short to be a piece that have no slot
    unread: Int[Array, "n"]  # groups beyond the slots, not in `count`; 0 unless limits.groups is set
    failure: Int[Array, "n k"]  # rules.Failure
    complete: Bool[Array, "n k"]  # three fields and two times
    valid: Bool[Array, "n k"]  # complete, and within the clip
    start: Int[Array, "n k"]  # centiseconds, 0 unless complete
    end: Int[Array, "n k"]
    first_frame: Int[Array, "n k"]  # 0 unless valid
    last_frame: Int[Array, "n k"]  # inclusive
    description: strings.Buffer  # [n, k, d], empty unless complete
    source: Int[Array, "n k 2"]  # where the description's JSON string begins in the text, and its length there

    @property
    def slots_used(self) -> Any:
        """How many slots hold a group, of the shape and type of `count`."""
        return self.count - self.short


class Answer(NamedTuple):
    """RefAVS: the text of the answer itself."""

    formatted: Bool[Array, "n"]
    answered: Bool[Array, "n"]
    failure: Int[Array, "n"]
    description: strings.Buffer  # [n, d]


class Boxes(NamedTuple):
    """Grounding: the `bbox_2d` of each group of the whole text, -1 where it is missing."""

    count: Int[Array, "n"]
    failure: Int[Array, "n k"]
    box: Float[Array, "n k 4"]


class BoxAndPoints(NamedTuple):
    """refCOCOg: the first object of the answer, parsed leniently, and whether it is strictly well-formed."""

    formatted: Bool[Array, "n"]
    failure: Int[Array, "n"]  # of the object: OK, TOO_LONG, NO_ANSWER, ABSENT or BAD_JSON
    box_failure: Int[Array, "n"]
    box: Float[Array, "n 4"]  # -1 where missing
    point_failure: Int[Array, "n 2"]
    points: Int[Array, "n 2 2"]  # -1 where missing
    strict: Bool[Array, "n"]


class _Objects(NamedTuple):
    """Groups with the result of the JSON automaton, one lane per slot."""

    groups: scan.Groups
    row: Int[Array, "l"]
    parse: automaton.Parse


def _rows(n: int, k: int) -> Int[Array, "l"]:
    return jnp.repeat(jnp.arange(n, dtype=jnp.int32), k)


def _objects(text: Text, groups: scan.Groups, keys: tuple[str, ...]) -> _Objects:
    n, k = groups.begin.shape
    row = _rows(n, k)
    run = jnp.where(groups.present, groups.last - groups.begin + 1, 0).reshape(-1)
    bits = automaton.wanted(text.bytes, keys)
    return _Objects(groups, row, automaton.parse(text.bytes, bits, row, groups.begin.reshape(-1), run, len(keys)))


def _present(text: Text, row: Int[Array, "l"], parse: automaton.Parse) -> Bool[Array, "l f"]:
    """Which of the wanted fields are present and not null."""
    m = text.bytes.shape[1]
    opening = text.bytes.reshape(-1)[row[:, None] * m + jnp.maximum(parse.value, 0)]
    return parse.good[:, None] & (parse.value >= 0) & (opening != ord("n"))


def _first_of(cases: list[tuple[Array, Failure]]) -> Int[Array, "*s"]:
    """The first failure that applies, else OK."""
    kinds = [jnp.int32(int(kind)) for _, kind in cases]
    return jnp.select([case for case, _ in cases], kinds, jnp.int32(int(Failure.OK)))


def read_plan(text: Text, frames: Int[Array, "n"], limits: Limits = rules.DEFAULT) -> Plan:
    """VOS plans of completions about clips of `frames` frames at 2 per second (rewards: steps 1 to 6)."""
    answer = scan.answer(text)
    n, k = text.length.shape[0], rules.plan_slots(text.bytes.shape[1], limits)
    shortest = 0 if limits.groups else rules.MIN_PIECE_BYTES
    groups = scan.groups(text, answer, k, min_bytes=shortest, max_short=rules.SHORT_SLOTS)
    unread = jnp.maximum(groups.count - groups.short - k, 0)
    objects = _objects(text, groups, rules.PLAN_KEYS)
    parse, row = objects.parse, objects.row
    present = _present(text, row, parse)
    m = text.bytes.shape[1]
    value_begin = parse.value[:, 2]
    is_string = text.bytes.reshape(-1)[row * m + jnp.maximum(value_begin, 0)] == ord('"')
    fields = jnp.all(present, axis=1) & is_string

    double = lambda x: jnp.concatenate([x, x])
    times = values.times(text.bytes, double(row), parse.value[:, :2].T.reshape(-1), double(fields))
    good_times = jnp.all(times.good.reshape(2, -1), axis=0)
    start, end = times.cs.reshape(2, n, k)

    grid = lambda x: x.reshape(n, k)
    complete = grid(fields & good_times)
    outside = (start > end) | (end > 50 * frames[:, None])
    valid = complete & ~outside
    failure = _first_of(
        [
            (jnp.broadcast_to(text.too_long[:, None], (n, k)), Failure.TOO_LONG),
            (jnp.broadcast_to(~answer.present[:, None], (n, k)), Failure.NO_ANSWER),
            (~groups.present, Failure.ABSENT),
            (~grid(parse.good), Failure.BAD_JSON),
            (~grid(fields), Failure.MISSING_FIELD),
            (~complete, Failure.BAD_TIME),
            (outside, Failure.OUT_OF_RANGE),
        ]
    )
    frame = lambda cs: jnp.where(valid, jnp.minimum(cs // 50, frames[:, None] - 1), 0)

    intro = automaton.escapes(text.bytes)
    quotes = (text.bytes == ord('"')) & ~jnp.pad(intro[:, :-1], ((0, 0), (1, 0)))
    begin = grid(value_begin) + 1
    close = automaton.string_end(quotes, begin - 1)
    plain = strings.unescape(text.bytes, intro)
    went = lambda p: jnp.take_along_axis(plain.position, jnp.clip(p, 0, m - 1), axis=1)
    size = jnp.where(complete, went(close) - went(begin), 0)
    keep = lambda x: jnp.where(complete, x, 0)
    return Plan(
        formatted=scan.formatted(text),
        answered=answer.present,
        count=groups.count - unread,
        short=groups.short,
        unread=unread,
        failure=failure,
        complete=complete,
        valid=valid,
        start=keep(start),
        end=keep(end),
        first_frame=frame(start),
        last_frame=frame(end),
        description=strings.slices(plain.bytes, went(begin), size, limits.description),
        source=jnp.stack([keep(begin), keep(close - begin)], axis=-1),
    )


def read_answer(text: Text, limits: Limits = rules.DEFAULT) -> Answer:
    """RefAVS: the answer's text is the description."""
    answer = scan.answer(text)
    size = answer.end - answer.begin
    buffer = strings.slices(text.bytes, answer.begin[:, None], size[:, None], limits.description)
    failure = _first_of([(text.too_long, Failure.TOO_LONG), (~answer.present, Failure.NO_ANSWER)])
    return Answer(
        scan.formatted(text),
        answer.present,
        failure,
        strings.Buffer(buffer.bytes[:, 0], buffer.length[:, 0], buffer.truncated[:, 0]),
    )


def _list_failure(present: Array, numbers: values.Numbers) -> list[tuple[Array, Failure]]:
    return [
        (~present, Failure.MISSING_FIELD),
        (~numbers.good, Failure.BAD_LIST),
        (~numbers.in_range, Failure.OUT_OF_RANGE),
    ]


def read_boxes(text: Text, slots: int) -> Boxes:
    """Grounding answers: every group of the whole text takes a slot, good or bad (rewards: step 8)."""
    groups = scan.groups(text, scan.full_text(text), slots)
    objects = _objects(text, groups, rules.BOX_KEYS)
    parse, row = objects.parse, objects.row
    present = _present(text, row, parse)[:, 0]
    numbers = values.numbers(text.bytes, row, parse.value[:, 0], present, 4)
    n = text.length.shape[0]
    failure = _first_of(
        [
            (jnp.repeat(text.too_long, slots), Failure.TOO_LONG),
            (~groups.present.reshape(-1), Failure.ABSENT),
            (~parse.good, Failure.BAD_JSON),
            *_list_failure(present, numbers),
        ]
    )
    box = jnp.where(numbers.in_range[:, None], numbers.value, -1.0)
    return Boxes(groups.count, failure.reshape(n, slots), box.reshape(n, slots, 4))


def read_box_and_points(text: Text) -> BoxAndPoints:
    r"""refCOCOg: the first `{[^}]+}` of the answer.

    Lenient: the box under the first key that contains "bbox", the points under the first two that contain "points",
        in any case. Strict: `bbox_2d`, `points_1` and `points_2` are lists of 4, 2 and 2 numbers.
    """
    n, m = text.bytes.shape
    answer = scan.answer(text)
    groups = scan.groups(text, answer, 1, skip_empty=True)
    strict = _objects(text, groups, rules.BOX_AND_POINTS_KEYS)
    row, is_json = strict.row, strict.parse.good

    begin = jnp.where(groups.present, groups.begin, 0)
    index = jnp.minimum(begin + jnp.arange(m, dtype=jnp.int32), m - 1)
    run = jnp.where(groups.present, groups.last - groups.begin + 1, 0)[:, 0]
    aligned = jnp.where(jnp.arange(m) < run[:, None], jnp.take_along_axis(text.bytes, index, axis=1), 0)
    bits = automaton.loose_keys(aligned, strict.parse.trace, is_json)
    loose = automaton.parse(aligned, bits, row, jnp.zeros(n, jnp.int32), run, 3)

    def lists(source: Array, parse: automaton.Parse) -> tuple[Bool[Array, "n 3"], list[values.Numbers]]:
        present = _present(Text(source, text.length, text.too_long), row, parse)
        read = lambda f, k: values.numbers(source, row, parse.value[:, f], present[:, f], k)
        return present, [read(0, 4), read(1, 2), read(2, 2)]

    _, (box, points_1, points_2) = lists(text.bytes, strict.parse)
    well_formed = box.in_range & points_1.in_range & points_2.in_range
    present, (box, points_1, points_2) = lists(aligned, loose)

    base = [
        (text.too_long, Failure.TOO_LONG),
        (~answer.present, Failure.NO_ANSWER),
        (~groups.present[:, 0], Failure.ABSENT),
        (~is_json, Failure.BAD_JSON),
    ]
    kind = lambda f, numbers: _first_of([*base, *_list_failure(present[:, f], numbers)])
    points = jnp.stack([jnp.where(p.in_range[:, None], p.integer, -1) for p in (points_1, points_2)], axis=1)
    return BoxAndPoints(
        formatted=scan.formatted(text),
        failure=_first_of(base),
        box_failure=kind(0, box),
        box=jnp.where(box.in_range[:, None], box.value, -1.0),
        point_failure=jnp.stack([kind(1, points_1), kind(2, points_2)], axis=1),
        points=points,
        strict=well_formed,
    )
