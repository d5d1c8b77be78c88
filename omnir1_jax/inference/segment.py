"""Masks at the videos' own sizes, from a segmenter's logits."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from omnir1_jax.inference.answer import Prompts
from omnir1_jax.systems import segmenters
from omnir1_jax.systems.segmenters import Segmenter

CANVAS = 64  # heights and widths are rounded up to multiples, so that few programs serve all sizes


def logits(
    segmenter: Segmenter,
    params: Any,
    clips: UInt8[Array, "b t h w 3"],
    frame_valid: Bool[Array, "b t"],
    original: Int[Array, "b 2"],
    prompts: Prompts,
) -> Float[Array, "b n t y x"]:
    """Mask logits of each object slot in every frame of the videos, at the segmenter's mask size."""
    one_group = segmenters.Prompts(*jax.tree.map(lambda x: x[:, None], tuple(prompts)))
    with jax.named_scope("segment"):
        return segmenter.logits(params, clips, frame_valid, original, one_group)[:, 0]


@functools.partial(jax.jit, static_argnums=2)
def lift(
    logits: Float[Array, "b n t y x"], original: Int[Array, "b 2"], canvas: tuple[int, int]
) -> Bool[Array, "b t height width"]:
    """The union of all slots' masks at the videos' own sizes (`original`: width, height), top left on the canvas.

    Bilinear as `sam2.lift_masks`, each slot by itself, frame by frame.
    """
    grid = jnp.array(logits.shape[3:], jnp.float32)

    def lift_frame(logits: Float[Array, "n y x"], original: Int[Array, "2"]) -> Bool[Array, "height width"]:
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

    lift_frames = jax.vmap(lift_frame, (0, 0))
    return jax.lax.map(lambda frame: lift_frames(frame, original), jnp.moveaxis(logits, 2, 0)).swapaxes(0, 1)


def canvas(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """Height and width that fit all sizes (height, width)."""
    up = lambda x: -(-x // CANVAS) * CANVAS
    return up(max(size[0] for size in sizes)), up(max(size[1] for size in sizes))
