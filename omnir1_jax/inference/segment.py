"""SAM 2 over every frame of the videos of a batch, and masks at the videos' own size."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from omnir1_jax.errors import InputError
from omnir1_jax.inference.answer import Prompts
from omnir1_jax.models import sam2
from omnir1_jax.models.sam2.model import NO_OBJECT

CANVAS = 64  # heights and widths are rounded up to multiples, so that few programs serve all sizes


def sam2_logits(
    model: sam2.Sam2,
    params: Any,
    clips: UInt8[Array, "b t h w 3"],
    frame_valid: Bool[Array, "b t"],
    original: Int[Array, "b 2"],
    prompts: Prompts,
) -> Float[Array, "b n t y x"]:
    """Mask logits of each object slot at the segmenter's mask size; -1024 in slots without a box.

    Args:
      clips: frames stretched to any square; `original` is the width and height that the boxes refer to.
    """
    (b, _, slots), side, t = prompts.used.shape, model.config.mask_side, clips.shape[1]
    features = jax.vmap(lambda clip: sam2.encode_frames(model, params, clip))(clips)

    def track(features, frame_valid, original, boxes, used, frames):
        found = sam2.track(
            model, params, features, boxes[None], frames[None], used[None], frame_valid=frame_valid, size=original[::-1]
        )
        return found.logits[0].astype(jnp.float32)

    def body(state):
        slot, out = state
        own = lambda x: jax.lax.dynamic_index_in_dim(x, slot, axis=2, keepdims=False)
        boxes, used = own(prompts.boxes), own(prompts.used)
        logits = jax.vmap(track)(features, frame_valid, original, boxes, used, prompts.frames)
        return slot + 1, jax.lax.dynamic_update_index_in_dim(out, logits, slot, axis=1)

    # One slot after another up to the last that any clip uses: most answers are of one object.
    last = jnp.max(jnp.where(prompts.used.any(axis=(0, 1)), jnp.arange(1, slots + 1), 0))
    blank = jnp.full((b, slots, t, side, side), NO_OBJECT)
    return jax.lax.while_loop(lambda state: state[0] < last, body, (jnp.zeros((), jnp.int32), blank))[1]


SEGMENTERS: dict[str, Callable[..., Float[Array, "b n t y x"]]] = {"sam2": sam2_logits}


def segmenter(name: str) -> Callable[..., Float[Array, "b n t y x"]]:
    """The configured segmenter of whole videos."""
    if name not in SEGMENTERS:
        raise InputError(f"step.segmenter: {name!r} is none of {', '.join(SEGMENTERS)}")
    return SEGMENTERS[name]


@functools.partial(jax.jit, static_argnums=2)
def lift(
    logits: Float[Array, "b n t y x"], original: Int[Array, "b 2"], canvas: tuple[int, int]
) -> Bool[Array, "b t height width"]:
    """The union of all slots' masks at the videos' own sizes (`original`: width, height), top left on the canvas.

    Bilinear as `sam2.lift_masks`, each slot by itself, frame by frame.
    """
    grid = jnp.array(logits.shape[3:], jnp.float32)

    def one(logits: Float[Array, "n y x"], original: Int[Array, "2"]) -> Bool[Array, "height width"]:
        raised = jax.image.scale_and_translate(
            logits,
            (logits.shape[0], *canvas),
            (1, 2),
            original[::-1] / grid,
            jnp.zeros(2),
            "linear",
            antialias=False,
        )
        return jnp.any(raised > 0, axis=0)

    every = jax.vmap(one, (0, 0))
    return jax.lax.map(lambda frame: every(frame, original), jnp.moveaxis(logits, 2, 0)).swapaxes(0, 1)


def canvas(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """Height and width with room for all sizes (height, width)."""
    up = lambda x: -(-x // CANVAS) * CANVAS
    return up(max(size[0] for size in sizes)), up(max(size[1] for size in sizes))


def without_holes(logits: Float[Array, "b n t y x"], area: int) -> Float[np.ndarray, "b n t y x"]:
    """Holes of at most `area` pixels of the segmenter's masks filled, on the host."""
    return sam2.fill_holes(np.asarray(logits), area)
