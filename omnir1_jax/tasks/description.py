"""The readable form of one completion: plain values on the host, and how they are read from arrays."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from omnir1_jax.data.frame_sampling import SAMPLED_FPS
from omnir1_jax.systems.frames import HighResFrames
from omnir1_jax.systems.grounders.protocol import GroundedBoxes, Requests
from omnir1_jax.text.readers import Plan
from omnir1_jax.text.rules import Failure
from omnir1_jax.text.strings import Buffer

Number = float | int
Box = tuple[Number, Number, Number, Number]
At = tuple[int, int]  # prompt and completion


class Piece(NamedTuple):
    """One group of a plan.

    start, end: seconds. frames: first and last, None unless the piece is valid. failure: why it is not, by name.
    """

    start: float
    end: float
    frames: tuple[int, int] | None
    description: str
    failure: str | None = None


class Keyframe(NamedTuple):
    """A frame that System 2 looked at, with its query and its answer as text and as boxes.

    boxes: inclusive (x_min, y_min, x_max, y_max) in the pixels of the clip's own size.
    """

    frame: int
    description: str
    answer: str
    boxes: tuple[Box, ...] = ()


class Description(NamedTuple):
    """The content of a completion.

    Attributes:
      answer: the parsed answer, for a task without plans. gold: the reference answer, if it is a text.
    """

    pieces: tuple[Piece, ...] = ()
    keyframes: tuple[Keyframe, ...] = ()
    answer: str | None = None
    gold: str | None = None


class Clip(NamedTuple):
    """The content of a picture.

    frames: at any size, in the aspect of `size`. size: width and height that all boxes refer to. truth, predicted:
    masks of all objects together at any size, stretched over the frame. boxes: true ones of n objects, -1 where an
    object is not in the frame. seconds: when each frame is seen. numbers: frame numbers in the video, if the clip
    is not the entire video.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    size: tuple[int, int]
    truth: Bool[np.ndarray, "t y x"] | None = None
    predicted: Bool[np.ndarray, "t yp xp"] | None = None
    boxes: Float[np.ndarray, "n t 4"] | None = None
    seconds: tuple[float, ...] | None = None
    numbers: tuple[int, ...] | None = None


def text(buffer: Buffer, index: Any) -> str:
    """One string of a buffer."""
    return buffer.bytes[index][: buffer.length[index]].tobytes().decode("utf-8", "replace")


def boxes(rows: Float[np.ndarray, "n 4"], scale: Float[np.ndarray, "2"]) -> tuple[Box, ...]:
    """Converts boxes from resized pixels to pixels of the clip's own size; missing ones are left out."""
    corners = rows[(rows != -1).any(axis=1)].reshape(-1, 2, 2) / scale
    return tuple(map(tuple, corners.reshape(-1, 4).tolist()))


def pieces(plan: Plan, index: At) -> tuple[Piece, ...]:
    """The groups of a plan, [b g ...]."""
    out = []
    for slot in range(int(plan.slots_used[index])):
        slot_index = (*index, slot)
        failure = Failure(int(plan.failure[slot_index]))
        frames = (
            (int(plan.first_frame[slot_index]), int(plan.last_frame[slot_index])) if plan.valid[slot_index] else None
        )
        start, end = float(plan.start[slot_index]) / 100, float(plan.end[slot_index]) / 100
        name = None if failure == Failure.OK else failure.name.lower()
        out.append(Piece(start, end, frames, text(plan.description, slot_index), name))
    return tuple(out)


def keyframes(requests: Requests, grounded: GroundedBoxes | None, index: At) -> tuple[Keyframe, ...]:
    """System 2's requests and boxes; `grounded` is None if the boxes come from elsewhere."""
    out = []
    for slot in np.flatnonzero(requests.valid[index]):
        slot_index = (*index, int(slot))
        query, answer, located = text(requests.description, slot_index), "", ()
        if grounded is not None:
            answer = text(grounded.answer, slot_index)
            if grounded.asked[slot_index]:
                located = boxes(grounded.box[slot_index][: int(grounded.count[slot_index])], grounded.scale[index[0]])
        out.append(Keyframe(int(requests.frame[slot_index]), query, answer, located))
    return tuple(out)


def assemble(
    cells: UInt8[np.ndarray, "n cell cell 3"], rows_cols: Int[np.ndarray, "n 2"]
) -> UInt8[np.ndarray, "h w 3"]:
    """A frame from its cells."""
    side = cells.shape[1]
    rows, columns = rows_cols.max(axis=0) + 1
    out = np.zeros((rows, side, columns, side, 3), np.uint8)
    out[rows_cols[:, 0], :, rows_cols[:, 1]] = cells
    return out.reshape(rows * side, columns * side, 3)


def high_res_clip(frames: HighResFrames, i: int, count: int) -> Clip:
    """The frames of prompt i that System 2 may look at, in the clip's own aspect."""
    side = frames.cells.shape[3]
    used = int(frames.resized[i][0] // side * (frames.resized[i][1] // side))
    images = [assemble(frames.cells[i, t, :used], frames.rows_cols[i, :used]) for t in range(count)]
    size = (int(frames.original[i][0]), int(frames.original[i][1]))
    return Clip(np.stack(images), size, seconds=tuple(t / SAMPLED_FPS for t in range(count)))


def policy_frames(batch: Any, i: int) -> UInt8[np.ndarray, "t h w 3"]:
    """The frames that System 1 sees: one of an image, two of each temporal patch of a video."""
    vision = batch.policy.vision
    out = []
    for cells in vision.frames[i]:
        used = cells[cells >= 0]
        if len(used):
            out += [assemble(vision.pixels[i, used, k], vision.rows_cols[i, used]) for k in range(2)]
    return np.stack(out)


def policy_clip(batch: Any, i: int) -> Clip:
    """The clip as System 1 sees it: the default picture of a task."""
    frames = policy_frames(batch, i)
    return Clip(frames, (frames.shape[2], frames.shape[1]), seconds=tuple(t / SAMPLED_FPS for t in range(len(frames))))
