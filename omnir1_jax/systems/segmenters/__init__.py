"""System 2's second half: boxes, or descriptions, to masks over a clip.

`step.segmenter` names one of `SEGMENTERS`, or a user-defined object as module:object or file.py:object; a plain
function makes masks from descriptions on the host, see `host`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt8

from omnir1_jax.config import lookup
from omnir1_jax.errors import InputError
from omnir1_jax.systems.frames import HighResFrames
from omnir1_jax.systems.grounders.protocol import GroundedBoxes, Requests
from omnir1_jax.systems.segmenters.host import HostSegmenter
from omnir1_jax.systems.segmenters.protocol import Masks, Prompts, Segmenter, TextSegmenter
from omnir1_jax.systems.segmenters.sam2 import Sam2Segmenter

__all__ = [
    "SEGMENTERS",
    "HostSegmenter",
    "Masks",
    "Prompts",
    "Sam2Segmenter",
    "Segmenter",
    "TextSegmenter",
    "extents",
    "make",
    "union",
]

SEGMENTERS: dict[str, Callable[[Sam2Segmenter | None], Segmenter | None]] = {"sam2": lambda sam2: sam2}


def make(name: str, sam2: Sam2Segmenter | None, setting: str = "step.segmenter") -> Segmenter | TextSegmenter | None:
    """The segmenter of this name.

    Args:
      sam2: segmenter of the name "sam2"; None if the config has none.

    Raises:
      InputError: no such name, or it is not a segmenter; names the setting.
    """
    if name in SEGMENTERS:
        return SEGMENTERS[name](sam2)
    segmenter = lookup.registered(name, SEGMENTERS, setting)
    if isinstance(segmenter, Segmenter | TextSegmenter):
        return segmenter
    if not callable(segmenter):
        raise InputError(f"{setting}: {name} is not a segmenter; see omnir1_jax/systems/segmenters/protocol.py")
    return HostSegmenter(segmenter, f"{setting}={name}")


def extents(masks: Bool[Array, "b g n t y x"], frames: HighResFrames, requests: Requests, slots: int) -> GroundedBoxes:
    """The boxes around each object's mask in the requested frames."""
    n, (y, x) = min(masks.shape[2], slots), masks.shape[4:]
    frame_index = requests.frame[:, :, None, :, None, None]
    seen = jnp.swapaxes(jnp.take_along_axis(masks[:, :, :n], frame_index, axis=3), 2, 3)  # [b g k n y x]
    rows, columns = seen.any(axis=-1), seen.any(axis=-2)
    low = lambda hit: jnp.argmax(hit, axis=-1)
    high = lambda hit: hit.shape[-1] - jnp.argmax(hit[..., ::-1], axis=-1)
    box = jnp.stack([low(columns), low(rows), high(columns), high(rows)], axis=-1).astype(jnp.float32)
    scale = jnp.tile(frames.resized / jnp.array([x, y], jnp.float32), 2)[:, None, None, None]
    box = box * scale - jnp.array([0, 0, 1, 1], jnp.float32)  # inclusive extents
    pad = ((0, 0),) * 3 + ((0, slots - n),)
    return GroundedBoxes.of(frames, requests, jnp.pad(box, (*pad, (0, 0))), jnp.pad(rows.any(axis=-1), pad))


def union(
    segmenter: Segmenter,
    params: object,
    clip: UInt8[Array, "b t side side 3"],
    frame_valid: Bool[Array, "b t"],
    original: Int[Array, "b 2"],
    prompts: Prompts,
) -> Masks:
    """The union of the masks of each completion's objects."""
    if hasattr(segmenter, "masks"):
        return segmenter.masks(params, clip, frame_valid, original, prompts)
    logits = segmenter.logits(params, clip, frame_valid, original, prompts)
    return Masks(jnp.any(logits > 0, axis=2), None)
