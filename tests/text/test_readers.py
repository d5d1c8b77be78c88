"""The readers in the graph against plain `re` and `json`, and against the host's reading."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnir1_jax.text import host, readers
from omnir1_jax.text.rules import Failure, Limits
from omnir1_jax.text.vocab import ByteVocab, detokenise
from tests.text import fuzz, oracle

BYTES, BATCH = 600, 500
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
    ids = np.full((BATCH, BYTES + 40), -1, np.int32)
    for row, raw in zip(ids, raws):
        row[: len(raw)] = list(raw[: BYTES + 40])
    padded = np.ones(BATCH, np.int32)
    padded[: len(frames)] = frames
    return jax.tree.map(np.asarray, read(jnp.asarray(ids), jnp.asarray(padded)))


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
        got["cut"] = plan.description.cut[i].tolist()
        assert got == want, raw
        hosted = host.read_plan(said, T, LIMITS, BYTES)
        assert (hosted.formatted, hosted.answered, hosted.count) == (want["formatted"], want["answered"], want["count"])
        assert len(hosted.pieces) == min(want["count"], LIMITS.groups)
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
        assert hosted.cut == answer.description.cut[i]

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
    for at in range(0, count, BATCH):
        raws = fuzz.cases(seed * 1_000_003 + at, BATCH, BYTES)
        kinds = kinds + check(raws, np.random.default_rng(at).integers(1, 240, BATCH))
    return kinds


def test_fuzz():
    kinds = fuzzed(1, 5000)
    # The fuzzer reaches every kind of failure of every reader often enough to mean something.
    plan, boxes, pointed = kinds
    assert (plan[[0, 1, 3, 4, 5, 6, 8]] >= 50).all(), plan
    assert (boxes[[0, 1, 4, 5, 7, 8]] >= 50).all(), boxes
    assert (pointed[[0, 1, 4, 5, 7, 8]] >= 20).all(), pointed


@pytest.mark.slow
def test_fuzz_long():
    fuzzed(2, 100_000)
