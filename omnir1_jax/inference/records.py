"""What was answered about one item, as plain values: for the log of an evaluation and for pictures."""

from typing import Any

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from omnir1_jax.inference.answer import Found
from omnir1_jax.inference.samples import Sample
from omnir1_jax.tasks.description import Keyframe, Piece
from omnir1_jax.text.rules import Failure
from omnir1_jax.text.strings import Buffer


def decode(words: PreTrainedTokenizerBase, tokens: np.ndarray, length: int) -> str:
    """The text of a completion."""
    return words.decode(tokens[:length].tolist(), skip_special_tokens=True)


def _text(buffer: Any) -> str:
    return bytes(np.asarray(buffer.bytes)[: int(buffer.length)]).decode("utf-8", "replace")


def record(
    sample: Sample, found: Found | None, row: int, family: str, words: PreTrainedTokenizerBase, eos: tuple[int, ...]
) -> dict[str, Any]:
    """One line of `results.jsonl`, without scores.

    Args:
      found: of the whole batch, on the host; None where the sample could not be read.
      row: of the sample in the batch.
    """
    line: dict[str, Any] = {
        "position": sample.position,
        "sample_id": sample.sample_id,
        "query": "" if sample.ref is None else sample.ref.query,
        "fault": sample.fault,
        "completion": "",
        "plan": [],
        "keyframes": [],
        "failures": [],
    }
    if found is None or sample.fault is not None:
        return line | {"failures": ["sample/bad"]}
    mine = jax.tree.map(lambda x: x[row], found)
    tokens, length = mine.completions.tokens[0], int(mine.completions.lengths[0])
    failures = [] if length and int(tokens[length - 1]) in eos else ["completion/unended"]
    line["completion"] = decode(words, tokens, length)
    if family == "qa":
        return line | {"failures": failures}
    if family == "vos":
        pieces = _pieces(mine.plan)
        failures += _plan_failures(mine.plan, pieces)
    else:
        line["answer"] = _text(mine.plan.description)
        pieces = []
        if not mine.plan.answered:
            failures += ["answer/no_answer"]
        elif not mine.plan.description.length:
            failures += ["answer/empty"]
    keyframes = [_keyframe(mine, k, family, failures) for k in range(len(mine.chosen.valid)) if mine.chosen.valid[k]]
    if keyframes and not mine.prompts.used.any():
        failures += ["box/none"]
    line["plan"] = [piece._asdict() for piece in pieces]
    line["keyframes"] = [keyframe._asdict() for keyframe in keyframes]
    line["failures"] = sorted(set(failures))
    return line


def _pieces(plan: Any) -> list[Piece]:
    out = []
    for i in range(int(plan.slots_used)):
        failure, valid = Failure(int(plan.failure[i])), bool(plan.valid[i])
        description = plan.description
        buffer = Buffer(description.bytes[i], description.length[i], description.truncated[i])
        frames = (int(plan.first_frame[i]), int(plan.last_frame[i])) if valid else None
        name = None if failure == Failure.OK else failure.name.lower()
        out.append(Piece(int(plan.start[i]) / 100, int(plan.end[i]) / 100, frames, _text(buffer), name))
    return out


def _plan_failures(plan: Any, pieces: list[Piece]) -> list[str]:
    if not plan.answered:
        return ["plan/no_answer"]
    if not int(plan.count):
        return ["plan/no_piece"]
    failures = [f"plan/{piece.failure}" for piece in pieces if piece.failure]
    failures += ["plan/too_short"] if plan.short else []
    return failures + (["plan/over_limit"] if plan.unread else [])


def description(mine: Found, family: str, k: int) -> str:
    """What System 2 is asked about keyframe k of an item."""
    if family != "vos":
        return _text(mine.plan.description)
    piece, found = int(mine.chosen.piece[k]), mine.plan.description
    # True boxes need no description, so there may be keyframes without one.
    return _text(jax.tree.map(lambda x: x[piece], found)) if mine.plan.valid[piece] else ""


def _keyframe(mine: Found, k: int, family: str, failures: list[str]) -> Keyframe:
    """A frame of the video with what System 2 made of it; what went wrong is added to `failures`."""
    frame, used = int(mine.prompts.frames[k]), mine.prompts.used[k]
    boxes = tuple(tuple(float(x) for x in box) for box in mine.prompts.boxes[k][used])
    wanted = description(mine, family, k)
    if mine.boxes is None:
        return Keyframe(frame, wanted, "", boxes)
    found = jax.tree.map(lambda x: x[0, k], mine.boxes._replace(scale=None, frames_read=None))
    if not found.asked:
        failures.append("description/too_long")
        return Keyframe(frame, wanted, "", ())
    count = min(int(found.count), len(found.failure))
    if not count:
        failures.append("box/no_group")
    kinds = [Failure(int(kind)) for kind in found.failure[:count]]
    failures += [f"box/{kind.name.lower()}" for kind in kinds if kind != Failure.OK]
    return Keyframe(frame, wanted, _text(found.answer), boxes)
