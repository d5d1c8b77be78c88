"""System 2: finds what a description names in a sharp frame, and follows it through the clip.

A *grounder* turns (frame, description) pairs into text with boxes, a *segmenter* turns boxes into masks. Both are
plain functions that the config names; `GROUNDERS` and `SEGMENTERS` are where another one is plugged in.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from omnir1_jax.models import sam2
from omnir1_jax.models.qwen_omni.cache import Prompt, PromptCache
from omnir1_jax.models.qwen_omni.decoding import decoding_copy
from omnir1_jax.models.qwen_omni.inputs import VisionInputs
from omnir1_jax.models.qwen_omni.sample import Sampling, Tails, generate
from omnir1_jax.models.qwen_omni.thinker import Thinker, place
from omnir1_jax.models.sam2.model import NO_OBJECT
from omnir1_jax.parallel.rowwise import rowwise


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class SharpFrames:
    """The frames of each clip at System 2's resolution, and the prompt in which one of them will stand.

    All frames of a clip have the same size, so layout and positions are those of any.

    Attributes:
      cells: each frame cut into the thinker's cells; a frame stands for both of a pair.
      rows_cols, windows, frames: layout of one frame, as in `VisionInputs`.
      tokens .. vision_index: the prompt up to the description, as in `ThinkerInputs`.
      resized: width and height of the frame that the cells show; answers are in its pixels.
      original: width and height of the clip.
    """

    cells: UInt8[Array, "b t m cell cell 3"]
    rows_cols: Int[Array, "b m 2"]
    windows: Int[Array, "b w window_cells"]
    frames: Int[Array, "b 1 frame_cells"]
    tokens: Int[Array, "b s"]
    mask: Bool[Array, "b s"]
    positions: Int[Array, "b 3 s"]
    next_position: Int[Array, " b"]
    vision_index: Int[Array, "b s"]
    resized: Int[Array, "b 2"]
    original: Int[Array, "b 2"]

    @property
    def scale(self) -> Float[Array, "b 2"]:
        """Resized over original width and height."""
        return self.resized / self.original.astype(jnp.float32)


class Requests(NamedTuple):
    """What is to be found where: up to k frames for each of g completions.

    Attributes:
      frame: distinct within a completion.
      tokens, mask: the rest of the prompt after the frame: description and instructions.
    """

    frame: Int[Array, "b g k"]
    valid: Bool[Array, "b g k"]
    tokens: Int[Array, "b g k n"]
    mask: Bool[Array, "b g k n"]


class Grounded(NamedTuple):
    """System 2's answers, and how many distinct frames had to be read for them."""

    tokens: Int[Array, "b g k c"]
    lengths: Int[Array, "b g k"]
    frames_read: Int[Array, " b"]


def qwen_omni(
    thinker: Thinker, params: Mapping[str, Any], frames: SharpFrames, requests: Requests, sampling: Sampling
) -> Grounded:
    """Grounding by a thinker, greedy. Each distinct frame is read once, then all requests are answered side by side.

    Args:
      params: {"vision": ..., "text": ...} of the frozen copy.
    """
    b, g, k, n = requests.tokens.shape
    t = frames.cells.shape[1]
    decoder = thinker.decoder()
    text = decoding_copy(decoder, {"params": params["text"]})
    wanted = jnp.any((requests.frame[..., None] == jnp.arange(t)) & requests.valid[..., None], axis=(1, 2))
    order = jnp.argsort(~wanted, axis=1, stable=True)  # distinct frames first, in time order
    count = jnp.sum(wanted, axis=1)

    def read(slot: Int[Array, ""]) -> PromptCache:
        at = jnp.take(order, slot, axis=1)
        cells = jnp.take_along_axis(frames.cells, at[:, None, None, None, None, None], axis=1)[:, 0]
        pixels = jnp.repeat(cells[:, :, None], 2, axis=2)
        vision = VisionInputs(pixels, frames.rows_cols, frames.windows, frames.frames)
        seen = thinker.apply({"params": {"vision": params["vision"]}}, vision, method=lambda m, x: m.vision(x))
        embeddings = decoder.apply(text, frames.tokens, method="embed")
        prompt = Prompt(
            place(embeddings, seen, frames.vision_index), frames.positions, frames.mask, frames.next_position
        )
        return decoder.apply(text, prompt, method="prefill")

    def body(state: tuple[Array, tuple[Array, ...]]) -> tuple[Array, tuple[Array, ...]]:
        slot, kept = state
        cache = read(slot)
        new = (cache.keys, cache.values, cache.last)
        put = lambda old, x, axis: jax.lax.dynamic_update_index_in_dim(old, x, slot, axis)
        return slot + 1, tuple(put(*both, axis) for *both, axis in zip(kept, new, (2, 2, 1)))

    like = jax.eval_shape(read, jax.ShapeDtypeStruct((), jnp.int32))
    slots = min(t, g * k)
    room = lambda x, axis: jnp.zeros((*x.shape[:axis], slots, *x.shape[axis:]), x.dtype)
    empty = (room(like.keys, 2), room(like.values, 2), room(like.last, 1))
    with jax.named_scope("frames"):
        _, kept = jax.lax.while_loop(lambda state: state[0] < jnp.max(count), body, (jnp.zeros((), jnp.int32), empty))

    # Each request becomes a row of its own with its frame's cache, so that one pass over the weights serves them all.
    place_of = jnp.take_along_axis(jnp.cumsum(wanted, axis=1) - 1, requests.frame.reshape(b, g * k), axis=1)
    place_of = jnp.clip(place_of, 0, slots - 1)
    keys, values = (
        jnp.take_along_axis(x, place_of[None, :, :, None, None, None], axis=2).reshape(-1, b * g * k, *x.shape[3:])
        for x in kept[:2]
    )
    repeat = lambda x: jnp.repeat(x, g * k, axis=0)
    last = jnp.take_along_axis(kept[2], place_of[..., None], axis=1).reshape(b * g * k, -1)
    found = generate(
        decoder,
        text,
        PromptCache(keys, values, repeat(frames.mask), repeat(frames.next_position), last),
        jax.random.key(0),
        sampling,
        tails=Tails(requests.tokens.reshape(-1, 1, n), requests.mask.reshape(-1, 1, n)),
        active=requests.valid.reshape(-1, 1),
    )
    return Grounded(found.tokens.reshape(b, g, k, -1), found.lengths.reshape(b, g, k), count)


class Masks(NamedTuple):
    """Propagated masks of each completion, all its objects together, at the segmenter's mask size."""

    union: Bool[Array, "b g t y x"]
    scores: Float[Array, "b g n t"]


def sam2_video(
    model: sam2.Sam2,
    params: Any,
    clip: UInt8[Array, "b t h w 3"],
    frame_valid: Bool[Array, "b t"],
    original: Int[Array, "b 2"],
    boxes: Float[Array, "b g k n 4"],
    prompts: Bool[Array, "b g k n"],
    frame: Int[Array, "b g k"],
) -> Masks:
    """SAM 2.1 from the boxes of each object through the clip; each clip is encoded once for all completions.

    Over a mesh each device sees to its own clips, and where there is an axis `tensor` to a part of the completions.

    Args:
      clip: frames stretched to any square; `original` is the width and height that the boxes refer to.
      prompts: which boxes are real. A completion without any has an empty union.
    """
    clips, asked = (clip, frame_valid, original), (boxes, prompts, frame)
    return rowwise(functools.partial(_clips, model), params, *clips, columns=asked)


def _clips(model, params, clip, frame_valid, original, boxes, prompts, frame) -> Masks:
    """`sam2_video` of the clips and completions of one device."""
    b, g, k, n = prompts.shape
    side, t, objects = model.config.mask_side, clip.shape[1], g * n
    flat = lambda x: jnp.moveaxis(x, 3, 2).reshape(b, objects, k, *x.shape[4:])
    boxes, used = flat(boxes), flat(prompts)
    at = jnp.broadcast_to(frame[:, :, None], (b, g, n, k)).reshape(b, objects, k)
    real = used.any(axis=2)
    order = jnp.argsort(~real, axis=1, stable=True)  # tracked objects first, so that the others cost nothing
    chunk = min(model.config.object_chunk, objects)
    chunks = -(-objects // chunk)
    order = jnp.pad(order, ((0, 0), (0, chunks * chunk - objects)), constant_values=objects)
    features = jax.vmap(lambda frames: sam2.encode_frames(model, params, frames))(clip)

    def track(features, boxes, at, used, which, frame_valid, original):
        own = lambda x: jnp.take(x, which, axis=0, mode="fill", fill_value=0)
        tracks = sam2.track(
            model, params, features, own(boxes), own(at), own(used), frame_valid=frame_valid, size=original[::-1]
        )
        return (tracks.logits > 0) & tracks.known[..., None, None], tracks.scores

    def body(state):
        turn, seen, scores = state
        which = jax.lax.dynamic_slice_in_dim(order, turn * chunk, chunk, axis=1)
        new = jax.vmap(track)(features, boxes, at, used, which, frame_valid, original)
        put = jax.vmap(lambda old, x, which: old.at[which].set(x, mode="drop"))
        return turn + 1, put(seen, new[0], which), put(scores, new[1], which)

    with jax.named_scope("objects"):
        rounds = jnp.max(-(-jnp.sum(real, axis=1) // chunk))
        blank = jnp.zeros((b, objects, t, side, side), bool), jnp.full((b, objects, t), NO_OBJECT)
        start = (jnp.zeros((), rounds.dtype), *blank)
        _, seen, scores = jax.lax.while_loop(lambda state: state[0] < rounds, body, start)
    return Masks(seen.reshape(b, g, n, *seen.shape[2:]).any(axis=2), scores.reshape(b, g, n, t))


GROUNDERS: dict[str, Callable[..., Grounded]] = {"qwen_omni": qwen_omni}
SEGMENTERS: dict[str, Callable[..., Masks]] = {"sam2": sam2_video}
