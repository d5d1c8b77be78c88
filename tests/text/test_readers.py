"""The readers in the graph against plain `re` and `json`, and against the host's reading."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnir1_jax.text import readers
from omnir1_jax.text.rules import Failure, Limits
from omnir1_jax.text.vocab import ByteVocab, byte_vocab, detokenise
from tests.text import fuzz, host, oracle, trained

BYTES, CASES_AT_ONCE = 600, 500
ROWS = 64  # of the compiled program, whose time grows with them; most properties have few
LIMITS = Limits(groups=4, description=48)
SLOTS = 3
# One token a byte: what reaches the readers went through the repair of UTF-8.
VOCAB = ByteVocab(jnp.arange(256, dtype=jnp.uint8), jnp.arange(257, dtype=jnp.int32))


@jax.jit
def read(ids, frames):
    text, _ = detokenise(VOCAB, ids, BYTES)
    return (
        text,
        readers.read_plan(text, frames, LIMITS),
        readers.read_answer(text, LIMITS),
        readers.read_boxes(text, SLOTS),
        readers.read_box_and_points(text),
    )


def in_graph(raws, frames):
    """What the readers make of each text, padded to a multiple of ROWS."""
    count = max(-(-len(raws) // ROWS), 1) * ROWS
    ids, padded = np.full((count, BYTES + 40), -1, np.int32), np.ones(count, np.int32)
    for row, raw in zip(ids, raws):
        row[: len(raw)] = list(raw[: BYTES + 40])
    padded[: len(frames)] = frames
    found = [read(ids[at : at + ROWS], padded[at : at + ROWS]) for at in range(0, count, ROWS)]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def told(buffer, *at):
    return bytes(buffer.bytes[at][: buffer.length[at]])


def check(raws, frames):
    """Every field of every reader equals the oracle's, and the host's; returns the failures seen."""
    text, plan, answer, boxes, pointed = in_graph(raws, frames)
    kinds = np.zeros((3, len(Failure)), np.int64)
    for i, raw in enumerate(raws):
        said = raw.decode("utf-8", "replace")
        if len(raw) > BYTES or len(said.encode()) > BYTES:
            assert text.too_long[i] and text.length[i] == 0
            assert set(plan.failure[i]) == {Failure.TOO_LONG} and plan.count[i] == 0
            assert host.read_plan(said, 1, LIMITS, BYTES).failure == Failure.TOO_LONG
            assert answer.failure[i] == pointed.failure[i] == boxes.failure[i][0] == Failure.TOO_LONG
            continue
        assert bytes(text.bytes[i][: text.length[i]]) == said.encode(), raw
        T = int(frames[i])

        want = oracle.plan(said, T, LIMITS.groups, LIMITS.description)
        got = {name: getattr(plan, name)[i].tolist() for name in want if name not in ("description", "cut")}
        got["description"] = [told(plan.description, i, k) for k in range(LIMITS.groups)]
        got["cut"] = plan.description.truncated[i].tolist()
        assert got == want, raw
        hosted = host.read_plan(said, T, LIMITS, BYTES)
        for name in ("formatted", "answered", "count", "short", "unread"):
            assert getattr(hosted, name) == want[name], (name, raw)
        assert len(hosted.pieces) == want["count"] - want["short"]
        for k, piece in enumerate(hosted.pieces):
            assert piece._asdict() == {name: want[name][k] for name in piece._fields}, raw
            if piece.complete:
                begin, length = plan.source[i, k]
                assert said.encode()[begin - 1 : begin] == said.encode()[begin + length :][:1] == b'"'

        ans = oracle.answer(said)
        want = (ans is not None, oracle.fit(ans or "", LIMITS.description))
        assert (bool(answer.answered[i]), told(answer.description, i)) == want, raw
        hosted = host.read_answer(said, LIMITS, BYTES)
        assert (hosted.answered, hosted.description, hosted.failure) == (*want, answer.failure[i]), raw
        assert hosted.cut == answer.description.truncated[i]

        want = oracle.boxes(said, SLOTS)
        assert {name: getattr(boxes, name)[i].tolist() for name in want} == want, raw
        count, hosted = host.read_boxes(said, SLOTS, BYTES)
        assert count == want["count"]
        for k, box in enumerate(hosted):
            assert (box.failure, list(box.box)) == (want["failure"][k], want["box"][k]), raw

        want = oracle.box_and_points(said)
        assert {name: getattr(pointed, name)[i].tolist() for name in want} == want, raw
        hosted = host.read_box_and_points(said, BYTES)
        flat = (hosted.failure, hosted.box.failure, hosted.strict, hosted.formatted)
        assert flat == (want["failure"], want["box_failure"], want["strict"], want["formatted"]), raw
        assert [list(p.box) for p in hosted.points] == want["points"] and list(hosted.box.box) == want["box"], raw
        assert [p.failure for p in hosted.points] == want["point_failure"], raw
        for row, seen in enumerate((plan.failure[i], boxes.failure[i], [pointed.box_failure[i]])):
            np.add.at(kinds[row], seen, 1)
    return kinds


def fuzzed(seed, count):
    kinds = 0
    for at in range(0, count, CASES_AT_ONCE):
        raws = fuzz.cases(seed * 1_000_003 + at, CASES_AT_ONCE, BYTES)
        kinds = kinds + check(raws, np.random.default_rng(at).integers(1, 240, CASES_AT_ONCE))
    return kinds


def test_fuzz():
    kinds = fuzzed(1, 5000)
    # The fuzzer reaches every kind of failure of every reader often enough to mean something.
    plan, boxes, pointed = kinds
    assert (plan[[0, 1, 3, 4, 5, 6, 8]] >= 50).all(), plan
    assert (boxes[[0, 1, 4, 5, 7, 8]] >= 50).all(), boxes
    assert (pointed[[0, 1, 3, 4, 5, 7, 8]] >= 10).all(), pointed


@pytest.mark.slow
def test_fuzz_long():
    fuzzed(2, 100_000)


# Strings that hypothesis shrinks well: structure with holes, and free text.
JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=8,
)
TIME = st.from_regex(r"\A[0-9]{0,4}:?[0-9]{0,3}\.?[0-9]{0,4}.?\Z")
FIELDS = st.lists(
    st.tuples(st.sampled_from(["start_time", "end_time"]), TIME)
    | st.tuples(st.just("description"), st.text(max_size=20) | JSONISH)
    | st.tuples(st.sampled_from(["bbox_2d", "BBOX", "points_1", "points_2", "Points"]), JSONISH)
    | st.tuples(st.sampled_from(["bbox_2d", "points_1"]), st.lists(st.floats(width=32) | st.integers(), max_size=5))
    | st.tuples(st.text(max_size=5), JSONISH),
    max_size=5,
)


@st.composite
def spoken(draw):
    ascii_only = draw(st.booleans())
    spell = lambda x: json.dumps(x, ensure_ascii=ascii_only)
    one = lambda fields: "{" + ", ".join(f"{spell(k)}: {spell(v)}" for k, v in fields) + "}"
    body = draw(st.text(max_size=5)).join(map(one, draw(st.lists(FIELDS, max_size=5))))
    thought, gap = draw(st.text(max_size=9)), draw(st.sampled_from(["", " ", "\n"]))
    text = f"<think>{thought}</think>{gap}<answer>{body}</answer>"
    if draw(st.booleans()):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.text(max_size=4)) + text[at + draw(st.integers(0, 6)) :]
    return text.encode("utf-8", "replace")[:BYTES]


@settings(max_examples=60)
@given(st.lists(spoken() | st.binary(max_size=60), min_size=1, max_size=20), st.integers(1, 400))
def test_property(raws, frames):
    check(raws, np.full(len(raws), frames))


PARTS = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<ans", "wer>", "{", "}", '"', " ", "\n", "A"]
        + ['{"bbox_2d": [1, 2, 30, 40], "points_1": [5, 6], "points_2": [7, 8]}', '{"bbox_2d": [0, 0, 9, 9]}', "{}"]
        + ['{"start_time": "0:0.0", "end_time": "0:1.0", "description": "it"}']
    ),
    max_size=4,
).map("".join)


@settings(max_examples=20)
@given(st.lists(st.tuples(PARTS, PARTS, PARTS, st.booleans()), min_size=1, max_size=30))
def test_what_stands_outside_of_the_answer_is_not_read(cases):
    """Whatever stands around the answer, and whether one follows: every reader reads the answer alone."""
    another = '<answer>{"bbox_2d": [3, 3, 4, 4]}</answer>'
    cases = [case for case in cases if "<answer>" not in case[0] + case[1]]
    raws = [f"{a}<answer>{b}</answer>{c}{another * more}".encode() for a, b, c, more in cases]
    raws += [f"<answer>{b}</answer>".encode() for _, b, _, _ in cases]
    _, plan, answer, _, pointed = in_graph(raws, np.full(len(raws), 20))
    drop = dict(formatted=0)
    read = plan._replace(source=0, **drop), answer._replace(**drop), pointed._replace(**drop)
    n = len(cases)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x[:n], x[n : 2 * n]) if np.ndim(x) else None, read)
    check(raws, np.full(len(raws), 20))
    # Without the end of the answer there is none, whatever stands in it.
    check([raw.replace(b"</answer>", b"") for raw in raws], np.full(len(raws), 20))


def test_numbers_are_those_of_python():
    """Numbers of up to 18 decimals, as Python reads them, rounded to float32."""
    r = np.random.default_rng(0)
    lexemes = [repr(float(x)) for x in r.uniform(-1e6, 1e6, 4000)]
    lexemes += [repr(float(np.float32(x))) for x in r.uniform(-2000, 2000, 4000)]
    lexemes += [f"{x:.{k}f}" for x, k in zip(r.uniform(0, 2000, 4000), r.integers(0, 10, 4000))]
    lexemes += [f"{x:.{k}e}" for x, k in zip(r.uniform(0, 1e6, 4000), r.integers(0, 12, 4000))]
    # Halves between neighbouring float32 values go to the even one.
    near = np.float32(r.uniform(1, 1e6, 400))
    lexemes += [repr((float(x) + float(np.nextafter(x, np.float32(2e6)))) / 2) for x in near]
    lexemes = [x for x in lexemes if "e-" not in x or len(x.split(".")[1].split("e")[0]) + int(x.split("e-")[1]) <= 18]
    want = np.array([np.float32(float(x)) for x in lexemes])
    host_value, host_whole = zip(*map(host.read_number, lexemes))
    assert (np.array(host_value, np.float32) == want).all()
    assert list(host_whole) == [int(float(x)) if "e" not in x else host_whole[i] for i, x in enumerate(lexemes)]
    quads = [lexemes[i : i + 4] for i in range(0, len(lexemes) - 3, 4)]
    raws = [('{"bbox_2d": [' + ",".join(q) + "]}").encode() for q in quads]
    boxes = in_graph(raws, np.ones(len(raws), np.int32))[3]
    assert (boxes.failure[: len(quads), 0] == Failure.OK).all()
    assert (boxes.box[: len(quads), 0] == want[: 4 * len(quads)].reshape(-1, 4)).all()


def test_from_tokens():
    """From sampled ids to fields: what the host reads from `tokenizer.decode`."""
    tokenizer = trained.tokenizer(1000)
    tables = byte_vocab(tokenizer)
    r, dice = np.random.default_rng(0), fuzz.Dice(0)
    rows, width = [], 500
    dice.level = 0.05
    for _ in range(64):
        tokens = tokenizer(fuzz.plan(dice))["input_ids"][:width]
        # Special tokens in between vanish; a token exchanged breaks the text anywhere.
        for _ in range(dice.randrange(3)):
            tokens.insert(dice.randrange(len(tokens) + 1), int(r.integers(0, len(tokenizer))))
        rows.append((tokens + [tokenizer.convert_tokens_to_ids("<|endoftext|>")] * width)[:width])
    read = jax.jit(lambda ids, frames: readers.read_plan(detokenise(tables, ids, 2000)[0], frames))
    plan = jax.tree.map(np.asarray, read(jnp.asarray(rows), jnp.full(64, 60)))
    good = 0
    for i, tokens in enumerate(rows):
        want = host.read_plan(tokenizer.decode(tokens, skip_special_tokens=True), 60, max_bytes=2000)
        assert (plan.formatted[i], plan.answered[i], plan.count[i]) == (want.formatted, want.answered, want.count)
        for k, piece in enumerate(want.pieces):
            got = [getattr(plan, name)[i, k].tolist() for name in piece._fields[:7]]
            assert got == list(piece[:7]) and told(plan.description, i, k) == piece.description
            good += piece.complete
    assert good > 20


CASES = [
    # text, failure of each of 4 slots, frames of the first, groups; the clip has 20 frames
    (
        '<answer>{"start_time": "00:01.00", "end_time": "00:02.50", "description": "A"}</answer>',
        [0, 1, 1, 1],
        (2, 5),
        1,
    ),
    (
        '<answer>{"start_time": "00:03.00", "end_time": "00:02.50", "description": "A"}</answer>',
        [8, 1, 1, 1],
        (0, 0),
        1,
    ),
    ('<answer>{"start_time": "0:0.0", "end_time": "0:10.1", "description": ""}</answer>', [8, 1, 1, 1], (0, 0), 1),
    ('<answer>{"start_time": "0:0.0", "end_time": "0:10.0", "description": ""}</answer>', [0, 1, 1, 1], (0, 19), 1),
    ('<answer>{"start_time": "0:0.0", "end_time": "0:1.0", "description": 3}</answer>', [5, 1, 1, 1], (0, 0), 1),
    ('<answer>{"start_time": "0:0.0", "end_time": "0:1.0", "description": "}"}</answer>', [4, 1, 1, 1], (0, 0), 1),
    ('<answer>{"start_time": "0:0.0", "end_time": "0:1", "description": "{"}</answer>', [6, 1, 1, 1], (0, 0), 1),
    ("<answer>{}{}{}{}{} {</answer>{}", [5, 5, 5, 5], (0, 0), 4),  # of five, four are read and counted
    ('<answer>{"a": [[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]}{"a": [[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]}', [3] * 4, (0, 0), 0),
    (
        '<answer>{"a": [[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]}{"a": [[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]}</answer>',
        [5, 4, 1, 1],
        (0, 0),
        2,
    ),
]


@pytest.mark.parametrize(("text", "failure", "frames", "count"), CASES)
def test_by_hand(text, failure, frames, count):
    plan = in_graph([text.encode()], [20])[1]
    assert plan.failure[0].tolist() == failure and plan.count[0] == count
    assert (plan.first_frame[0, 0], plan.last_frame[0, 0]) == frames


def test_escapes_by_hand():
    """Every short escape, the edges of the surrogates, pairs and lone ones, in either case of the digits."""
    units = [r"\u0000", r"\u007F", r"\u0080", r"\u07ff", r"\u0800", r"\uFFFF", r"\uaBcD\\u1234"]
    units += [r"\ud83d\ud83d\ude00", r"\ude00\ud83d"]
    first, second = (r"\uD800", r"\udbff", r"\uD7FF", r"\ue000", "x"), (r"\udc00", r"\uDFFF", r"\udbff", "")
    spelled = ["\\" + c for c in '"\\/bfnrt'] + units + [a + b for a in first for b in second]
    form = '<answer>{"description":"<%s>","start_time":"0:0.0","end_time":"0:0.0"}</answer>'
    raws = [(form % s).encode() for s in spelled]
    kinds = check(raws, np.full(len(raws), 20))
    assert kinds[0, Failure.OK] == len(raws)
