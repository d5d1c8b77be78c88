"""Tracking through a clip: static shapes, one loop over time, objects in bounded chunks. All of it can be jitted."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from omnir1_jax.errors import InputError
from omnir1_jax.models.sam2.config import Sam2Config
from omnir1_jax.models.sam2.decoder import Masks
from omnir1_jax.models.sam2.hiera import Features
from omnir1_jax.models.sam2.model import NO_OBJECT, ObjectMasks, Sam2
from omnir1_jax.models.sam2.pixels import preprocess, usable
from omnir1_jax.models.sam2.scan import scan_first
from omnir1_jax.models.sam2.slots import recall_filled, rows

AnyArray: TypeAlias = jax.Array | np.ndarray


class Tracks(NamedTuple):
    """Masks of every object on every frame, at the mask side (a quarter of the input side).

    Where `known` is false (padded frames and objects, objects without a usable prompt, frames the direction does not
    reach) logits and score are -1024 and iou is 0. Where the model considers the object hidden (score <= 0) all
    logits are -1024. `iou` is the model's own estimate of its mask's quality.
    """

    logits: Float[Array, "o t y x"]
    scores: Float[Array, "o t"]
    iou: Float[Array, "o t"]
    known: Bool[Array, "o t"]


class Prompts(NamedTuple):
    """Boxes in pixels of the model's input, the frames they lie on, which are real, where tracking starts."""

    boxes: Float[Array, "o k 4"]
    frames: Int[Array, "o k"]
    valid: Bool[Array, "o k"]
    start: Int[Array, " o"]


class Bank(NamedTuple):
    """Memories of tracked frames; `filled` marks the frames that have one."""

    maps: Float[Array, "o t n c"]
    pointers: Float[Array, "o t d"]
    filled: Bool[Array, "o t"]


def encode_frames(model: Sam2, params: Any, frames: Num[AnyArray, "t h w 3"]) -> Features:
    """Features of all frames, `frame_chunk` at a time.

    Args:
      frames: uint8 RGB of any size (resized and normalised here), or floats that `preprocess` made.
    """
    config, t = model.config, frames.shape[0]
    frames = jax.lax.stop_gradient(jnp.asarray(frames))
    if frames.dtype != jnp.uint8 and frames.shape[1:3] != (config.side, config.side):
        raise InputError(
            f"SAM 2 frames: floats must be {config.side} x {config.side}, not {frames.shape[1]} x {frames.shape[2]}; "
            "give uint8 or call preprocess"
        )
    chunk = min(config.frame_chunk, t)
    count = -(-t // chunk)
    frames = jnp.pad(frames, ((0, count * chunk - t), (0, 0), (0, 0), (0, 0)))

    def encode(frames: Num[Array, "c h w 3"]) -> Features:
        pixels = preprocess(frames, config.side) if frames.dtype == jnp.uint8 else frames
        return model.apply({"params": jax.lax.stop_gradient(params)}, pixels, method=Sam2.encode)

    chunks = jax.lax.map(encode, frames.reshape(count, chunk, *frames.shape[1:]))
    return jax.tree.map(lambda x: x.reshape(count * chunk, *x.shape[2:])[:t], chunks)


def segment_video(
    model: Sam2,
    params: Any,
    frames: Num[AnyArray, "t h w 3"],
    boxes: Float[AnyArray, "o k 4"],
    box_frames: Int[AnyArray, "o k"],
    box_valid: Bool[AnyArray, "o k"] | None = None,
    *,
    frame_valid: Bool[AnyArray, " t"] | None = None,
    object_valid: Bool[AnyArray, " o"] | None = None,
    start: Int[AnyArray, " o"] | None = None,
    size: Num[AnyArray, "2"] | None = None,
) -> Tracks:
    """Tracks objects that are boxed on some frames through the clip. Static shapes; no gradient flows through it.

    An object's result does not depend on the other objects, so that prompts of many answers may share one call.

    Args:
      model: of `load`, static under jit.
      params: of `load`.
      frames: uint8 RGB, or normalised floats at the input side. One frame (an image) needs no memory modules.
      boxes: (x0, y0, x1, y1) in pixels of the clip, up to k per object. Of two on one frame the later counts.
        Finite boxes prompt the model as they stand, also outside the frame or inverted, as upstream. A box that is
        not finite or beyond a million pixels, or on a frame that is padded or does not exist, counts as absent.
      box_frames: the frame of each box.
      box_valid: false for padding.
      frame_valid: false for padding, which follows the clip.
      object_valid: false for padding.
      start: frame to start from; default by `config.direction`: 0, the object's first prompted frame (also for
        "both"), or the last frame ("reverse").
      size: (height, width) that the boxes' pixels refer to; default that of `frames`.

    Returns:
      `Tracks`; its docstring defines what padding and absent prompts give.
    """
    _check(model.config, frames.shape[0], boxes.shape[1])  # before the work
    features = encode_frames(model, params, frames)
    size = jnp.array(frames.shape[1:3]) if size is None else size
    return track(
        model, params, features, boxes, box_frames, box_valid,
        frame_valid=frame_valid, object_valid=object_valid, start=start, size=size,
    )  # fmt: skip


def track(
    model: Sam2,
    params: Any,
    features: Features,
    boxes: Float[AnyArray, "o k 4"],
    box_frames: Int[AnyArray, "o k"],
    box_valid: Bool[AnyArray, "o k"] | None = None,
    *,
    size: Num[AnyArray, "2"],
    frame_valid: Bool[AnyArray, " t"] | None = None,
    object_valid: Bool[AnyArray, " o"] | None = None,
    start: Int[AnyArray, " o"] | None = None,
    axis_name: str | None = None,
) -> Tracks:
    """`segment_video` on frames encoded by `encode_frames`.

    Args:
      axis_name: of a `jax.vmap` over clips around this call. They then take as many steps as the busiest of them,
        instead of keeping a copy of all that each step writes.
    """
    t, side = features.coarse.shape[0], model.config.mask_side
    if boxes.shape[0] == 0:
        _check(model.config, t, boxes.shape[1])
        empty = jnp.zeros((0, t))
        return Tracks(jnp.zeros((0, t, side, side)), empty, empty, empty.astype(bool))
    boxes, size = jnp.asarray(boxes), jnp.asarray(size)
    params, features, boxes, size = jax.lax.stop_gradient((params, features, boxes, size))
    track_chunk = lambda prompts, valid: _track_chunk(
        model, params, features, prompts, valid, all_masks=False, axis_name=axis_name
    )[0]
    return _in_chunks(
        model.config, track_chunk, t, boxes, box_frames, box_valid, size, frame_valid, object_valid, start
    )


def unroll(
    model: Sam2,
    params: Any,
    features: Features,
    boxes: Float[AnyArray, "o k 4"],
    box_frames: Int[AnyArray, "o k"],
    box_valid: Bool[AnyArray, "o k"] | None = None,
    *,
    size: Num[AnyArray, "2"],
    frame_valid: Bool[AnyArray, " t"] | None = None,
    object_valid: Bool[AnyArray, " o"] | None = None,
    remat: bool = True,
) -> tuple[Tracks, Masks]:
    """`track` with gradients, for training: also everything that the decoder returned for each frame, [o t ...].

    Args:
      remat: recompute each frame's step in the backward pass, so that only the memories are kept.

    Returns:
      The tracks, and all masks whatever the score decides; where the tracks are not `known` these are zero.
    """
    track_chunk = lambda prompts, valid: _track_chunk(
        model, params, features, prompts, valid, all_masks=True, remat=remat
    )
    t = features.coarse.shape[0]
    return _in_chunks(model.config, track_chunk, t, boxes, box_frames, box_valid, size, frame_valid, object_valid, None)


def _in_chunks(
    config: Sam2Config,
    track_chunk: Callable[[Prompts, Bool[Array, " t"]], Any],
    t: int,
    boxes: Float[AnyArray, "o k 4"],
    box_frames: Int[AnyArray, "o k"],
    box_valid: Bool[AnyArray, "o k"] | None,
    size: Num[AnyArray, "2"],
    frame_valid: Bool[AnyArray, " t"] | None,
    object_valid: Bool[AnyArray, " o"] | None,
    start: Int[AnyArray, " o"] | None,
) -> Any:
    """`track_chunk` on the prompts of `object_chunk` objects at a time."""
    o, k = boxes.shape[:2]
    _check(config, t, k)
    boxes, box_frames, size = jnp.asarray(boxes), jnp.asarray(box_frames), jnp.asarray(size)
    box_valid = jnp.ones((o, k), bool) if box_valid is None else jnp.asarray(box_valid)
    object_valid = jnp.ones((o,), bool) if object_valid is None else jnp.asarray(object_valid)
    frame_valid = jnp.ones((t,), bool) if frame_valid is None else jnp.asarray(frame_valid)
    prompts = _prompts(config, t, boxes, box_frames, box_valid & object_valid[:, None], frame_valid, start, size)

    chunk = min(config.object_chunk, o)
    count = -(-o // chunk)
    padded = jax.tree.map(lambda x: jnp.pad(x, [(0, count * chunk - o)] + [(0, 0)] * (x.ndim - 1)), prompts)
    split = jax.tree.map(lambda x: x.reshape(count, chunk, *x.shape[1:]), padded)
    chunks = jax.lax.map(lambda prompts: track_chunk(prompts, frame_valid), split)
    return jax.tree.map(lambda x: x.reshape(count * chunk, *x.shape[2:])[:o], chunks)


def _check(config: Sam2Config, t: int, k: int) -> None:
    if t > 1 and not config.video:
        raise InputError(f"SAM 2: {t} frames need the memory modules; load a Sam2VideoModel checkpoint")
    if t == 0 or k == 0:
        raise InputError(f"SAM 2: {t} frames and {k} boxes per object; there must be at least one of each")


def _prompts(
    config: Sam2Config,
    t: int,
    boxes: Float[Array, "o k 4"],
    frames: Int[Array, "o k"],
    valid: Bool[Array, "o k"],
    frame_valid: Bool[Array, " t"],
    start: Int[AnyArray, " o"] | None,
    size: Num[Array, "2"],
) -> Prompts:
    """Scales boxes to the input, drops unusable ones and finds where each object starts."""
    prompt_frames = jnp.clip(frames, 0, t - 1)
    valid = valid & usable(boxes) & (frames == prompt_frames) & frame_valid[prompt_frames]
    later = jnp.triu(jnp.ones((frames.shape[1],) * 2, bool), 1)  # [k, j]: j after k
    superseded = (prompt_frames[:, :, None] == prompt_frames[:, None, :]) & valid[:, None, :] & later
    valid = valid & ~superseded.any(axis=2)
    scale = config.side / jnp.tile(size[::-1], 2).astype(jnp.float32)
    boxes = jnp.where(valid[..., None], boxes, 0.0) * scale
    if start is None:
        first = jnp.min(jnp.where(valid, prompt_frames, t - 1), axis=1)
        starts = {"forward": 0, "reverse": _length(frame_valid) - 1}
        start = jnp.broadcast_to(starts.get(config.direction, first), first.shape)
    return Prompts(boxes, prompt_frames, valid, jnp.clip(jnp.asarray(start), 0, t - 1))


def _length(frame_valid: Bool[Array, " t"]) -> Int[Array, ""]:
    """Frames up to the last real one, at least 1."""
    return jnp.max(jnp.where(frame_valid, jnp.arange(1, frame_valid.shape[0] + 1), 1))


def _track_chunk(
    model: Sam2,
    params: Any,
    features: Features,
    prompts: Prompts,
    frame_valid: Bool[Array, " t"],
    *,
    all_masks: bool,
    remat: bool = False,
    axis_name: str | None = None,
) -> tuple[Tracks, Masks | None]:
    """Tracks a few objects at once; with `all_masks` also all of the decoder's, and gradients flow."""
    config, o, t = model.config, prompts.frames.shape[0], features.coarse.shape[0]
    apply = lambda method, *args: model.apply({"params": params}, *args, method=method)
    frame = lambda index: jax.tree.map(lambda x: jnp.take(x, index, axis=0, mode="clip"), features)

    def max_over_clips(count: Int[Array, ""]) -> Int[Array, ""]:
        """The maximum over the clips of a `jax.vmap`."""
        return count if axis_name is None else jax.lax.pmax(count, axis_name)

    def scan(step: Callable, carry: Any, xs: Any, count: Int[Array, ""]) -> tuple[Any, Any]:
        if all_masks:  # all steps, so that gradients flow
            return jax.lax.scan(jax.checkpoint(step, prevent_cse=False) if remat else step, carry, xs)
        return scan_first(step, carry, xs, max_over_clips(count))

    def find_prompted(_: tuple, slot: tuple) -> tuple:
        index, boxes = slot
        features_at = frame(index)
        found_masks = apply(Sam2.find_box, features_at, boxes, all_masks)
        return (), (found_masks, apply(Sam2.remember, features_at.coarse, found_masks, True) if t > 1 else None)

    slots = (prompts.frames.swapaxes(0, 1), prompts.boxes.swapaxes(0, 1))
    slot_count = jnp.max(jnp.where(prompts.valid, jnp.arange(1, prompts.valid.shape[1] + 1), 0))
    with jax.named_scope("prompted"):
        _, (prompted, prompted_maps) = scan(find_prompted, (), slots, slot_count)
    prompted, prompted_maps = jax.tree.map(lambda x: x.swapaxes(0, 1), (prompted, prompted_maps))
    if t == 1:
        return _collect(prompted, None, prompts, None, None)

    times, step_of_frame = _schedule(config, t, frame_valid, prompts)
    step = lambda bank, scheduled: _step(
        config, apply, frame, prompts, prompted, prompted_maps, frame_valid, all_masks, max_over_clips, bank, *scheduled
    )
    bank = Bank(
        jnp.zeros((o, t, *prompted_maps.shape[2:]), prompted_maps.dtype),
        jnp.zeros((o, t, prompted.pointer.shape[-1]), prompted.pointer.dtype),
        jnp.zeros((o, t), bool),
    )
    with jax.named_scope("tracked"):
        _, (tracked, reached) = scan(step, bank, times, jnp.max(jnp.sum(times[-1], axis=0)))
    tracked, reached = jax.tree.map(lambda x: x.swapaxes(0, 1), (tracked, reached))
    return _collect(prompted, tracked, prompts, step_of_frame, reached)


def _schedule(config: Sam2Config, t: int, frame_valid: Bool[Array, " t"], prompts: Prompts) -> tuple[tuple, Array]:
    """Which frame each object is tracked on in each step.

    Returns:
      (frame [s, o], direction of time [s, o], whether the step is active [s, o]), idle steps last, and the step whose
      result each frame keeps [o, t].
    """
    start, n = prompts.start, _length(frame_valid)
    frames = jnp.arange(t)
    if config.direction == "both":  # start .. n-1, then start .. 0: t + 1 steps are enough for any start
        step = jnp.arange(t + 1)[:, None]
        backward = step >= n - start
        frame_index = jnp.where(backward, n - step, start + step)
        active = (frame_index >= 0) & ~(backward & (start == 0))
        sign = jnp.where(backward, -1, 1)
        forward = (frames > start[:, None]) | (start[:, None] == 0)
        step_of_frame = jnp.where(forward, frames - start[:, None], n - frames)
    elif config.direction == "reverse":
        frame_index = jnp.broadcast_to(frames[::-1, None], (t, start.shape[0]))
        active, sign = frame_index <= start, jnp.full(frame_index.shape, -1)
        step_of_frame = jnp.broadcast_to(t - 1 - frames, (start.shape[0], t))
    else:
        frame_index = jnp.broadcast_to(frames[:, None], (t, start.shape[0]))
        active, sign = frame_index >= start, jnp.full(frame_index.shape, 1)
        step_of_frame = jnp.broadcast_to(frames, (start.shape[0], t))
    frame_index = jnp.clip(frame_index, 0, t - 1)
    prompted = ((prompts.frames == frame_index[..., None]) & prompts.valid).any(axis=-1)
    real = ((frame_index[..., None] == frames) & frame_valid).any(axis=-1)  # no gather, see `layers.pick`
    active = active & real & prompts.valid.any(axis=1) & ~prompted
    # Each object's idle steps go last, so that all objects end as soon as the busiest one is done.
    order = jnp.argsort(~active, axis=0, stable=True)
    times = tuple(jnp.take_along_axis(x, order, axis=0) for x in (frame_index, sign, active))
    last = jnp.clip(step_of_frame, 0, None)[..., None] == jnp.arange(order.shape[0])  # no gather here either
    return times, jnp.sum(jnp.where(last, jnp.argsort(order, axis=0).T[:, None], 0), axis=-1)


def _step(
    config: Sam2Config,
    apply: Any,
    frame: Any,
    prompts: Prompts,
    prompted: ObjectMasks,
    prompted_maps: Float[Array, "o k n c"],
    frame_valid: Bool[Array, " t"],
    all_masks: bool,
    max_over_clips: Callable[[Int[Array, ""]], Int[Array, ""]],
    bank: Bank,
    frame_index: Int[Array, " o"],
    sign: Int[Array, " o"],
    active: Bool[Array, " o"],
) -> tuple[Bank, tuple]:
    """One frame per object: recall, find, remember."""
    t = frame_valid.shape[0]
    # Memories: prompted frames (all, or the nearest), then the last tracked ones, nearest first.
    slots, slots_seen = _conditioning(config, prompts, frame_index)
    slot_maps = prompted_maps if (every_slot := slots.shape == prompts.frames.shape) else rows(prompted_maps, slots)
    recent = frame_index[:, None] - sign[:, None] * jnp.arange(1, config.memories)
    inside = (recent >= 0) & (recent < t)
    recent_filled = inside & rows(bank.filled, recent)
    recent_maps = rows(bank.maps, recent)
    if not every_slot:  # a prompted frame that is not among the nearest serves as recent
        left_out = prompts.valid & ~(slots[:, None, :] == jnp.arange(prompts.frames.shape[1])[:, None]).any(axis=2)
        match = (recent[:, :, None] == prompts.frames[:, None, :]) & left_out[:, None, :]
        use = match.any(axis=2) & ~recent_filled
        recent_maps = jnp.where(use[..., None, None], rows(prompted_maps, jnp.argmax(match, axis=2)), recent_maps)
        recent_filled = recent_filled | use
    maps, seen = jnp.concatenate((slot_maps, recent_maps), axis=1), jnp.concatenate((slots_seen, recent_filled), axis=1)
    times = (config.memories - 1,) * slots.shape[1] + tuple(range(config.memories - 1))

    # Pointers: prompted frames that have passed, and tracked ones.
    longest = jnp.minimum(_length(frame_valid), config.pointers) - 1
    passed = (frame_index[:, None] - prompts.frames) * sign[:, None]
    steps_back = jnp.arange(1, min(t, config.pointers))
    recent = frame_index[:, None] - sign[:, None] * steps_back
    inside = (recent >= 0) & (recent < t) & (steps_back <= longest)
    pointers = jnp.concatenate((prompted.pointer, rows(bank.pointers, recent)), axis=1)
    pointers_seen = jnp.concatenate((prompts.valid & (passed >= 0), inside & rows(bank.filled, recent)), axis=1)
    distances = jnp.concatenate((passed, jnp.broadcast_to(steps_back, recent.shape)), axis=1)
    distances = distances / jnp.maximum(longest, 1).astype(jnp.float32)

    current = frame(frame_index)
    recall = lambda maps, times, seen: apply(
        Sam2.recall, current.coarse, maps, times, seen, pointers, distances, pointers_seen
    )
    times = jnp.array(np.broadcast_to(times, seen.shape))
    image = recall(maps, times, seen) if all_masks else recall_filled(recall, max_over_clips, active, maps, times, seen)
    predicted = apply(Sam2.find_again, current, image, all_masks)
    memory = apply(Sam2.remember, current.coarse, predicted, False)
    written = (jnp.arange(t) == frame_index[:, None]) & active[:, None]
    bank = Bank(
        jnp.where(written[..., None, None], memory[:, None], bank.maps),
        jnp.where(written[..., None], predicted.pointer[:, None], bank.pointers),
        written | bank.filled,
    )
    return bank, (predicted._replace(pointer=None), active)


def _conditioning(config: Sam2Config, prompts: Prompts, frame_index: Int[Array, " o"]) -> tuple[Array, Array]:
    """The slots [o, m] of prompted frames to attend, and which of them are real [o, m].

    With a limit: the nearest before, the nearest at or after, then the nearest of the rest, earlier slots first.
    """
    (o, k), limit = prompts.frames.shape, config.conditioning_slots
    if limit == -1 or k <= limit:
        return jnp.broadcast_to(jnp.arange(k), (o, k)), prompts.valid
    gap = prompts.frames - frame_index[:, None]
    unreachable = 1 << 20
    before = jnp.where(prompts.valid & (gap < 0), -gap, unreachable)
    after = jnp.where(prompts.valid & (gap >= 0), gap, unreachable)
    first = lambda x: (x == x.min(axis=1, keepdims=True)) & (x < unreachable)
    key = jnp.where(first(before) | first(after), -1, jnp.where(prompts.valid, jnp.abs(gap), unreachable))
    slots = jnp.argsort(key, axis=1, stable=True)[:, :limit]
    return slots, rows(prompts.valid, slots)


def _collect(
    prompted: ObjectMasks,
    tracked: ObjectMasks | None,
    prompts: Prompts,
    step_of_frame: Array | None,
    reached: Array | None,
) -> tuple[Tracks, Masks | None]:
    """Puts prompted and tracked frames in order; frames that neither reached have no object."""
    k = prompts.frames.shape[1]
    t = 1 if step_of_frame is None else step_of_frame.shape[1]
    match = (prompts.frames[:, None, :] == jnp.arange(t)[:, None]) & prompts.valid[:, None, :]  # [o, t, k]
    index, known = jnp.argmax(match, axis=2), match.any(axis=2)
    predicted = prompted._replace(pointer=None)
    if tracked is not None:
        index = jnp.where(known, index, k + step_of_frame)
        known = known | rows(reached, step_of_frame)
        predicted = jax.tree.map(lambda a, b: jnp.concatenate((a, b), axis=1), predicted, tracked)
    pick = lambda x, otherwise: jnp.where(known.reshape(*known.shape, *(1,) * (x.ndim - 2)), rows(x, index), otherwise)
    tracks = Tracks(
        pick(predicted.logits, NO_OBJECT), pick(predicted.score, NO_OBJECT), pick(predicted.iou, 0.0), known
    )
    return tracks, jax.tree.map(lambda x: pick(x, 0.0), predicted.masks)
