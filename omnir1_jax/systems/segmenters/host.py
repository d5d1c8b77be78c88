"""Masks from descriptions on the host: for SAM 3, Sa2VA and other models from text to masks.

A function `masks(frames, descriptions, keyframes) -> masks`, called once for each answer of System 1:

  frames: of one video, RGB [t h w 3].
  descriptions: one for each keyframe.
  keyframes: indices of the frames that System 1 chose.
  masks: of every frame, bool [t h w], or [n t h w] of n objects.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8
from ml_collections import ConfigDict

from omnir1_jax.data.canvas import resize_mask
from omnir1_jax.errors import InputError
from omnir1_jax.systems.frames import HighResFrames
from omnir1_jax.systems.grounders.host import images, request_texts
from omnir1_jax.systems.grounders.protocol import Requests


@dataclasses.dataclass(frozen=True)
class HostSegmenter:
    """A user's function. `name`: the setting's value, for messages."""

    function: Callable[[UInt8[np.ndarray, "t h w 3"], Sequence[str], Sequence[int]], Any]
    name: str
    host: ClassVar[bool] = True

    def load(self, config: ConfigDict) -> None:
        """None: the function has its own parameters."""

    def __call__(
        self, frames: UInt8[np.ndarray, "t h w 3"], descriptions: Sequence[str], keyframes: Sequence[int]
    ) -> Bool[np.ndarray, "n t h w"]:
        """The function's masks.

        Raises:
          InputError: their size is not the frames'.
        """
        masks = np.asarray(self.function(frames, descriptions, keyframes))
        masks = masks[None] if masks.ndim == 3 else masks
        if masks.ndim != 4 or masks.shape[1:] != frames.shape[:3]:
            raise InputError(
                f"{self.name}: it gave masks of shape {masks.shape}; {frames.shape[:3]} are wanted, or several of these"
            )
        return masks.astype(bool)

    def from_text(
        self, params: None, frames: HighResFrames, frame_valid: Any, requests: Requests, size: tuple[int, int]
    ) -> Bool[Array, "b g n t y x"]:
        """As `TextSegmenter.from_text`, on concrete arrays."""
        valid, frame, real = jax.device_get((requests.valid, requests.frame, frame_valid))
        (b, g, _), t = valid.shape, real.shape[1]
        pictures, texts = images(frames), request_texts(requests)
        masks: dict[tuple[int, int], np.ndarray] = {}
        for row, member in np.argwhere(valid.any(axis=2)):
            slots = np.flatnonzero(valid[row, member])
            count = int(real[row].sum())
            row_texts = [texts[row, member, k] for k in slots]
            masks[row, member] = self(pictures[row][:count], row_texts, [int(frame[row, member, k]) for k in slots])
        out = np.zeros((b, g, max([1, *(len(mask) for mask in masks.values())]), t, *size), bool)
        for index, mask in masks.items():
            for n, k in np.ndindex(mask.shape[:2]):
                out[*index, n, k] = resize_mask(mask[n, k], size)
        return jnp.asarray(out)
