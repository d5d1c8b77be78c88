"""The segmenter protocol: boxes, or descriptions, to masks over a clip."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from omnir1_jax.systems.frames import HighResFrames
from omnir1_jax.systems.grounders.protocol import Requests


class Masks(NamedTuple):
    """Masks of each completion, the union of its objects, at the segmenter's mask size.

    Attributes:
      scores: the segmenter's scores of each object in each frame; None without any.
    """

    union: Bool[Array, "b g t y x"]
    scores: Float[Array, "b g n t"] | None


class Prompts(NamedTuple):
    """Boxes as prompts for a segmenter, of n objects in k frames of each of g completions.

    Attributes:
      boxes: in pixels of the clip. used: which of them are real. frame: indices in the clip.
    """

    boxes: Float[Array, "b g k n 4"]
    used: Bool[Array, "b g k n"]
    frame: Int[Array, "b g k"]


@runtime_checkable
class Segmenter(Protocol):
    """Tracks boxes through a clip, in the graph, with its own parameters; hashable, as `Grounder`.

    Training uses a method `masks`, with the arguments of `logits` and `Masks` as its result, if there is one.
    """

    def load(self, config: ConfigDict) -> Any:
        """The parameters as a tree of arrays, replicated over the devices; None without any."""

    def logits(
        self,
        params: Any,
        clip: UInt8[Array, "b t side side 3"],
        frame_valid: Bool[Array, "b t"],
        original: Int[Array, "b 2"],
        prompts: Prompts,
    ) -> Float[Array, "b g n t y x"]:
        """Mask logits of each object, a quarter of `side` in size; negative everywhere without a prompt.

        Args:
          clip: frames stretched to a square of sam2.side.
          original: width and height that the boxes refer to.
        """


@runtime_checkable
class TextSegmenter(Protocol):
    """Masks from descriptions, without boxes: both halves of System 2. `host`: as in `Grounder`."""

    host: bool

    def load(self, config: ConfigDict) -> Any:
        """As `Segmenter.load`."""

    def from_text(
        self,
        params: Any,
        frames: HighResFrames,
        frame_valid: Bool[Array, "b t"],
        requests: Requests,
        size: tuple[int, int],
    ) -> Bool[Array, "b g n t y x"]:
        """Masks of up to n objects in every frame, stretched to `size` (height, width)."""
