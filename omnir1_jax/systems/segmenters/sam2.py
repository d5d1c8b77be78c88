"""SAM 2.1 as segmenter: boxes are followed through the clip."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from omnir1_jax.models import sam2
from omnir1_jax.models.sam2.model import NO_OBJECT
from omnir1_jax.parallel.rowwise import rowwise


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


SEGMENTERS: dict[str, Callable[..., Masks]] = {"sam2": sam2_video}
