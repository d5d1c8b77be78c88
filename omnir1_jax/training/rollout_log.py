"""From a step's rollout on the devices to what a person reads of it: `reporting.example.Example` of every completion.

Only what this process has is told: with several hosts, the prompts of the first.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from transformers import PreTrainedTokenizerBase

from omnir1_jax.data.frame_sampling import SAMPLED_FPS
from omnir1_jax.reporting.example import Box, Clip, Example, Keyframe, Piece
from omnir1_jax.rl import grpo
from omnir1_jax.rl.config import StepConfig
from omnir1_jax.rl.step import Rollout
from omnir1_jax.systems.frames import HighResFrames
from omnir1_jax.tasks import Task
from omnir1_jax.text.rules import Failure
from omnir1_jax.text.strings import Buffer


class Told(NamedTuple):
    """What a family reads of one completion."""

    pieces: tuple[Piece, ...] = ()
    keyframes: tuple[Keyframe, ...] = ()
    answer: str | None = None
    gold: str | None = None
    failures: tuple[str, ...] = ()


def examples(
    task: Task,
    batch: Any,
    rollout: Rollout,
    sample_ids: Sequence[str],
    queries: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    config: StepConfig,
    clips: int = 0,
) -> list[Example]:
    """Every completion of a step, those of a prompt together.

    Args:
      batch: the step's; its pixels are fetched only for the clips.
      sample_ids, queries: of its prompts.
      clips: how many completions get what a picture needs: the best of each prompt first, then the worst of each.
    """
    tell, show = _TELL[task.name], _SHOW[task.name]
    tokens, lengths, reading, found, rewards = fetch(
        (rollout.completions.tokens, rollout.completions.lengths, rollout.reading, rollout.found, rollout.rewards)
    )
    small = fetch(_without_pixels(batch))
    advantages = np.asarray(grpo.advantages(jnp.asarray(rewards.total), config.grpo.advantage))
    b, g = lengths.shape
    write = lambda ids, length: tokenizer.decode(ids[:length].tolist(), skip_special_tokens=True)
    out = []
    for at in np.ndindex(b, g):
        told = tell(config, small, reading, found, at, write)
        ended = lengths[at] == 0 or tokens[at][lengths[at] - 1] in config.sampling.eos
        failures = told.failures if ended else (*told.failures, "completion/unended")
        out.append(
            Example(
                sample_id=sample_ids[at[0]],
                query=queries[at[0]],
                completion=write(tokens[at], lengths[at]),
                family=task.name,
                reward=float(rewards.total[at]),
                rewards={name: float(value[at]) for name, value in rewards.terms.items()},
                advantage=float(advantages[at]),
                **told._replace(failures=tuple(dict.fromkeys(failures)))._asdict(),
            )
        )
    chosen = picked(rewards.total, clips)
    if chosen:
        masks = None if rollout.masks is None else fetch(rollout.masks.union)
        whole = fetch(batch)
        for i, j in chosen:
            clip = show(whole, i)
            if masks is not None:
                clip = clip._replace(predicted=masks[i, j][np.asarray(whole.frame_valid[i])])
            out[i * g + j] = out[i * g + j]._replace(clip=clip)
    return out


def picked(reward: Float[np.ndarray, "b g"], count: int) -> list[tuple[int, int]]:
    """The completions worth a picture: the best of each prompt, then the worst of each where that is another one."""
    best = [(i, int(row.argmax())) for i, row in enumerate(reward)]
    worst = [(i, int(row.argmin())) for i, row in enumerate(reward)]
    return list(dict.fromkeys(best + worst))[:count]


def fetch(tree: Any) -> Any:
    """A tree of arrays on the host; of an array that spans several hosts the rows that are here, in order."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
            leaf.copy_to_host_async()
    return jax.tree.map(_rows, tree)


def _rows(array: Any) -> np.ndarray:
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    return rows_here(array)


def rows_here(array: jax.Array) -> np.ndarray:
    """The rows of a sharded array that this process holds, each once."""
    if not array.ndim:
        return np.asarray(array.addressable_shards[0].data)
    parts: dict[int, np.ndarray] = {}
    for shard in array.addressable_shards:
        start = shard.index[0].start or 0
        if start not in parts:
            parts[start] = np.asarray(shard.data)
    return np.concatenate([parts[start] for start in sorted(parts)])


def _without_pixels(batch: Any) -> Any:
    """The batch's small fields alone."""
    return {
        name: value.scale if isinstance(value, HighResFrames) else value
        for name, value in vars(batch).items()
        if name not in ("policy", "clip", "truth")
    }


def _text(buffer: Buffer, at: Any) -> str:
    return buffer.bytes[at][: buffer.length[at]].tobytes().decode("utf-8", "replace")


def _kind(name: str, failure: np.integer) -> list[str]:
    kind = Failure(int(failure))
    return [] if kind == Failure.OK else [f"{name}/{kind.name.lower()}"]


def _box(box: Float[np.ndarray, "4"], scale: Float[np.ndarray, "2"]) -> Box:
    """A box in resized pixels in those of the clip's own size."""
    return tuple(float(x) for x in box / np.tile(scale, 2))


def _boxes(boxes: Float[np.ndarray, "n 4"], scale: Float[np.ndarray, "2"]) -> tuple[Box, ...]:
    return tuple(_box(box, scale) for box in boxes if not (box == -1).all())


def _tell_vos(config: StepConfig, batch: dict, reading, found, at: tuple[int, int], write: Callable) -> Told:
    plan, keyframes, asked = reading.plan, reading.keyframes, found.boxes.asked[at]
    n, scale, objects = found.boxes.box.shape[-2], found.boxes.scale[at[0]], int(batch["objects"][at[0]])
    failures = [] if plan.answered[at] else ["plan/no_answer"]
    failures += ["plan/no_piece"] if plan.answered[at] and not plan.count[at] else []
    pieces = []
    failures += ["plan/too_short"] if plan.short[at] else []
    failures += ["plan/over_limit"] if plan.unread[at] else []
    for slot in range(int(plan.slots_used[at])):
        where = (*at, slot)
        frames = (int(plan.first_frame[where]), int(plan.last_frame[where])) if plan.valid[where] else None
        why = _kind("plan", plan.failure[where])
        failures += why
        start, end = float(plan.start[where]) / 100, float(plan.end[where]) / 100
        name = why[0].removeprefix("plan/") if why else None
        pieces.append(Piece(start, end, frames, _text(plan.description, where), name))
    looked = []
    for slot in np.flatnonzero(keyframes.valid[at]):
        where = (*at, int(slot))
        words = _text(plan.description, (*at, int(keyframes.piece[where])))
        answer = _text(found.boxes.answer, where)
        count = int(found.boxes.count[where])
        if not asked[slot]:
            failures.append("description/too_long")
        elif not count:
            failures.append("box/no_group")
        else:
            for failure in found.boxes.failure[where][: min(count, objects)]:
                failures += _kind("box", failure)
        boxes = _boxes(found.boxes.box[where][: min(count, n)], scale) if asked[slot] else ()
        looked.append(Keyframe(int(keyframes.frame[where]), words, answer, boxes))
    return Told(tuple(pieces), tuple(looked), failures=tuple(failures))


def _tell_refavs(config: StepConfig, batch: dict, reading, found, at: tuple[int, int], write: Callable) -> Told:
    words = _text(reading.answer.description, at)
    failures = _kind("answer", reading.answer.failure[at])
    failures += ["answer/empty"] if reading.answer.answered[at] and not words else []
    where = (*at, 0)
    if not found.asked[where]:
        failures += ["description/too_long"] if words else []
        return Told(answer=words, failures=tuple(failures))
    failures += _kind("box", found.failure[where][0])
    answer = _text(found.answer, where)
    boxes = _boxes(found.box[where], found.scale[at[0]])
    return Told((), (Keyframe(0, words, answer, boxes),), words, None, tuple(failures))


def _tell_refcocog(config: StepConfig, batch: dict, reading, _, at: tuple[int, int], write: Callable) -> Told:
    row = at[0] * config.group + at[1]
    failures = _kind("object", reading.failure[row]) + _kind("box", reading.box_failure[row])
    failures += [kind for failure in reading.point_failure[row] for kind in _kind("points", failure)]
    box = _boxes(reading.box[row : row + 1], batch["scale"][at[0]])
    # The policy itself is the one that looked.
    return Told(keyframes=(Keyframe(0, "the policy's own box", "", box),), failures=tuple(failures))


def _tell_qa(config: StepConfig, batch: dict, reading, _, at: tuple[int, int], write: Callable) -> Told:
    row = at[0] * config.group + at[1]
    failures = _kind("answer", reading.answer.failure[row])
    failures += [] if failures or reading.right[row] else ["answer/wrong"]
    gold = batch["gold"][at[0]][: batch["gold_length"][at[0]]].tobytes().decode("utf-8", "replace")
    return Told(answer=_text(reading.answer.description, row), gold=gold, failures=tuple(failures))


def assemble(
    cells: UInt8[np.ndarray, "n cell cell 3"], rows_cols: Int[np.ndarray, "n 2"]
) -> UInt8[np.ndarray, "h w 3"]:
    """A frame from its cells."""
    side = cells.shape[1]
    rows, columns = rows_cols.max(axis=0) + 1
    out = np.zeros((rows, side, columns, side, 3), np.uint8)
    out[rows_cols[:, 0], :, rows_cols[:, 1]] = cells
    return out.reshape(rows * side, columns * side, 3)


def _sharp_clip(sharp: HighResFrames, i: int, count: int) -> Clip:
    """The frames that System 2 may look at, in the clip's own aspect."""
    side = sharp.cells.shape[3]
    used = int(sharp.resized[i][0] // side * (sharp.resized[i][1] // side))
    frames = [assemble(sharp.cells[i, t, :used], sharp.rows_cols[i, :used]) for t in range(count)]
    size = (int(sharp.original[i][0]), int(sharp.original[i][1]))
    return Clip(np.stack(frames), size, seconds=tuple(t / SAMPLED_FPS for t in range(count)))


def _policy_frames(batch: Any, i: int) -> UInt8[np.ndarray, "t h w 3"]:
    """The frames that System 1 sees: one of an image, two of each temporal patch of a video."""
    vision = batch.policy.vision
    out = []
    for cells in vision.frames[i]:
        used = cells[cells >= 0]
        if len(used):
            out += [assemble(vision.pixels[i, used, k], vision.rows_cols[i, used]) for k in range(2)]
    return np.stack(out)


def _show_vos(batch: Any, i: int) -> Clip:
    count = int(np.sum(batch.frame_valid[i]))
    clip = _sharp_clip(batch.sharp, i, count)
    boxes = batch.boxes[i][: int(batch.objects[i]), :count]
    return clip._replace(truth=batch.truth[i][:count], boxes=boxes.astype(np.float32))


def _show_refavs(batch: Any, i: int) -> Clip:
    return _sharp_clip(batch.sharp, i, 1)._replace(boxes=batch.box[i][None, None].astype(np.float32))


def _show_refcocog(batch: Any, i: int) -> Clip:
    frames = _policy_frames(batch, i)[:1]
    width, height = np.round(np.array(frames.shape[2:0:-1]) / batch.scale[i]).astype(int)
    return Clip(frames, (int(width), int(height)), boxes=batch.box[i][None, None].astype(np.float32))


def _show_qa(batch: Any, i: int) -> Clip:
    frames = _policy_frames(batch, i)
    seconds = tuple(t / SAMPLED_FPS for t in range(len(frames)))
    return Clip(frames, (frames.shape[2], frames.shape[1]), seconds=seconds)


_TELL = {"vos": _tell_vos, "refavs": _tell_refavs, "refcocog": _tell_refcocog, "qa": _tell_qa}
_SHOW = {"vos": _show_vos, "refavs": _show_refavs, "refcocog": _show_refcocog, "qa": _show_qa}
