"""The grounder protocol: finds the objects that a description names in a frame, as boxes."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num
from ml_collections import ConfigDict

from omnir1_jax.systems.frames import HighResFrames
from omnir1_jax.text.rules import Failure
from omnir1_jax.text.strings import Buffer

MISSING = -1.0


class Requests(NamedTuple):
    """Requests to a grounder: up to k frames with descriptions for each of g completions of a prompt.

    Attributes:
      frame: index in the clip, distinct within a completion; 0 where not valid.
      description: System 1's text, UTF-8 in buffers of static size.
    """

    frame: Int[Array, "b g k"]
    valid: Bool[Array, "b g k"]
    description: Buffer  # [b g k d]


class GroundedBoxes(NamedTuple):
    """A grounder's answers: n boxes for each request, whatever the number of objects.

    Attributes:
      box: inclusive extents (x0, y0, x1, y1) in pixels of the input frame; -1 where there is none.
      count: number of objects in the answer, also beyond n.
      failure: `text.rules.Failure` of each of the n.
      asked: requests that the grounder answered: valid ones whose description fits.
      answer: the grounder's text for the log, UTF-8; empty if it gives none.
      scale: width and height of the input frame over those of the clip.
      frames_read: number of distinct frames read for each prompt.
      request_tokens, answer_tokens: for a language model, per request: tokens of its prompt beside the frame, and
        decoded tokens.
    """

    box: Float[Array, "b g k n 4"]
    count: Int[Array, "b g k"]
    failure: Int[Array, "b g k n"]
    asked: Bool[Array, "b g k"]
    answer: Buffer  # [b g k m]
    scale: Float[Array, "b 2"]
    frames_read: Int[Array, " b"]
    request_tokens: Int[Array, "b g k"] | None = None
    answer_tokens: Int[Array, "b g k"] | None = None

    @property
    def used(self) -> Bool[Array, "b g k n"]:
        """Mask of boxes without a missing coordinate, in answered requests."""
        return jnp.all(self.box != MISSING, axis=-1) & self.asked[..., None]

    @property
    def original(self) -> Float[Array, "b g k n 4"]:
        """The boxes in pixels of the clip; values of missing ones are undefined."""
        return self.box / jnp.tile(self.scale, 2)[:, None, None, None]

    @classmethod
    def of(
        cls, frames: HighResFrames, requests: Requests, box: Num[Array, "b g k n 4"], used: Bool[Array, "b g k n"]
    ) -> "GroundedBoxes":
        """From boxes without text.

        Args:
          box: boxes in pixels of `frames.rgb()`.
          used: which boxes are real.
        """
        used = used & requests.valid[..., None]
        empty = jnp.zeros((*requests.frame.shape, 1), jnp.uint8)
        zeros = jnp.zeros(requests.frame.shape, jnp.int32)
        seen = (requests.frame[..., None] == jnp.arange(frames.cells.shape[1])) & requests.valid[..., None]
        return cls(
            box=jnp.where(used[..., None], box, MISSING).astype(jnp.float32),
            count=jnp.sum(used, axis=-1, dtype=jnp.int32),
            failure=jnp.where(used, int(Failure.OK), int(Failure.ABSENT)),
            asked=requests.valid,
            answer=Buffer(empty, zeros, zeros > 0),
            scale=frames.scale,
            frames_read=jnp.sum(seen.any(axis=(1, 2)), axis=1, dtype=jnp.int32),
        )


@runtime_checkable
class Grounder(Protocol):
    """System 2's first half, with its own parameters, prompting, generation and parsing.

    Any object with these members is one; it must be hashable and stay the same during a run, as it is a static argument
    of the compiled step. One that runs on the host (`host` is True) serves evaluation, inference and training with
    step.mode=staged.
    """

    host: bool

    def load(self, config: ConfigDict) -> Any:
        """The parameters as a tree of arrays, replicated over the devices; None without any."""

    def ground(self, params: Any, frames: HighResFrames, requests: Requests, slots: int) -> GroundedBoxes:
        """Up to `slots` boxes for each request. Jittable, unless it runs on the host."""
