"""Grounders of any framework, as a plain function on the host: `ground(frames, descriptions) -> boxes`.

frames: of one video, RGB [n h w 3].
descriptions: one for each.
boxes: for each frame rows (x0, y0, x1, y1) in its pixels, by descending score, or none. Box i of all keyframes is taken
  as object i of the answer, and the answer is the union of all objects.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from ml_collections import ConfigDict

from omnir1_jax.errors import InputError
from omnir1_jax.systems.frames import HighResFrames
from omnir1_jax.systems.grounders.protocol import GroundedBoxes, Requests

Ground = Callable[[UInt8[np.ndarray, "n h w 3"], Sequence[str]], Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class HostGrounder:
    """A user's function, or a detector. `name`: the setting's value, for messages."""

    function: Ground
    name: str
    host: ClassVar[bool] = True

    def load(self, config: ConfigDict) -> None:
        """None: the function has its own parameters."""

    def __call__(
        self, frames: UInt8[np.ndarray, "n h w 3"], descriptions: Sequence[str], slots: int
    ) -> tuple[Float[np.ndarray, "n slots 4"], Bool[np.ndarray, "n slots"]]:
        """The function's boxes, at most `slots` for each frame, and which of them are real.

        Raises:
          InputError: the function's answer has another form.
        """
        answers = list(self.function(frames, descriptions))
        if len(answers) != len(frames):
            raise InputError(
                f"{self.name}: it gave boxes for {len(answers)} of {len(frames)} frames; one list per frame"
            )
        boxes, used = np.zeros((len(frames), slots, 4), np.float32), np.zeros((len(frames), slots), bool)
        for n, answer in enumerate(answers):
            try:
                rows = np.asarray(answer, np.float32).reshape(-1, 4)[:slots]
            except (TypeError, ValueError) as error:
                raise InputError(f"{self.name}: it gave {answer!r}; rows of (x0, y0, x1, y1) are wanted") from error
            used[n, : len(rows)] = np.isfinite(rows).all(axis=1)
            boxes[n, : len(rows)] = rows
        return np.where(used[..., None], boxes, 0), used

    def ground(self, params: None, frames: HighResFrames, requests: Requests, slots: int) -> GroundedBoxes:
        """As `Grounder.ground`, on concrete arrays; the function is called once for each clip."""
        valid, frame = jax.device_get((requests.valid, requests.frame))
        pictures, texts = images(frames), request_texts(requests)
        boxes, used = np.zeros((*valid.shape, slots, 4), np.float32), np.zeros((*valid.shape, slots), bool)
        for row in np.flatnonzero(valid.any(axis=(1, 2))):
            indices = np.argwhere(valid[row])
            row_texts = [texts[row, *index] for index in indices]
            answer = self(np.stack([pictures[row][frame[row, *index]] for index in indices]), row_texts, slots)
            boxes[row][tuple(indices.T)], used[row][tuple(indices.T)] = answer
        return GroundedBoxes.of(frames, requests, jnp.asarray(boxes), jnp.asarray(used))


def images(frames: HighResFrames) -> list[UInt8[np.ndarray, "t h w 3"]]:
    """The frames of each clip, without the canvas around them."""
    rgb, sizes = jax.device_get((frames.rgb(), frames.resized))
    return [np.ascontiguousarray(clip[:, :height, :width]) for clip, (width, height) in zip(rgb, sizes)]


def request_texts(requests: Requests) -> Mapping[tuple[int, int, int], str]:
    """The description of each valid request."""
    valid, text = jax.device_get((requests.valid, requests.description))
    return {
        tuple(map(int, index)): text.bytes[*index][: text.length[*index]].tobytes().decode("utf-8", "replace")
        for index in np.argwhere(valid)
    }
