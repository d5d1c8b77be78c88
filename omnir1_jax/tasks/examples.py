"""Building blocks of examples: System 1's prompt and System 2's frames as arrays of static shape.

The functions run in the pipeline's workers. Arrays are flat, their keys paths such as "policy/vision/pixels".
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import UInt8
from transformers import PreTrainedTokenizerBase

from omnir1_jax.data.audio import SAMPLE_RATE
from omnir1_jax.data.clips import DecodedClip
from omnir1_jax.data.frame_sampling import SAMPLED_FPS
from omnir1_jax.data.preprocess import bucket, prompt
from omnir1_jax.data.preprocess.settings import PixelBudget, Sizes
from omnir1_jax.data.refs import BadSample
from omnir1_jax.errors import InputError
from omnir1_jax.systems.frames import FramesConfig, high_res_arrays

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class ExampleConfig:
    """Config shared by all prompts.

    Attributes:
      system: System 1's system message.
      template: template of the task's user message. grounding: template of System 2's prompt.
      policy_budget: pixels of System 1's images and frames. sharp_budget: pixels of System 2's.
      text_tokens: maximum tokens of a prompt that are not media.
      frames: maximum frames of a clip. audio_seconds: maximum sound, 0 for none. objects: maximum objects of a target.
      segmenter_side: side of the segmenter's frames; 0 leaves them out.
      max_aspect: longest side over shortest; a clip beyond it is a bad sample.
      grounder: tokenizer and sizes of the thinker that sees System 2's frames, if it is another one.
      letters: whether the options of a question are listed with letters.
      stills: whether one frame with sound becomes an image and an audio; otherwise a video, so that all clips have
        one shape.
    """

    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    sizes: Sizes
    system: str
    template: str
    grounding: str
    policy_budget: PixelBudget
    sharp_budget: PixelBudget
    text_tokens: int
    frames: int
    objects: int
    audio_seconds: float
    segmenter_side: int
    max_aspect: float
    grounder: tuple[PreTrainedTokenizerBase, Sizes] | None = field(default=None, repr=False)
    letters: bool = True
    stills: bool = False

    @property
    def high_res(self) -> FramesConfig:
        """Config of System 2's frames."""
        grounder = self.grounder or (self.tokenizer, self.sizes)
        return FramesConfig(*grounder, self.grounding, self.sharp_budget, self.max_aspect)


@contextlib.contextmanager
def bad_sample(clip: DecodedClip) -> Iterator[None]:
    """Turns the error of a clip that does not fit its shapes into a bad sample, so that the run continues."""
    try:
        yield
    except InputError as error:
        raise BadSample(clip.ref.sample_id, str(error)) from error


def named(function: Callable[[DecodedClip, Any], Arrays]) -> Callable[[DecodedClip, Any], Arrays]:
    """A transform with `bad_sample`."""

    @functools.wraps(function)
    def guarded(clip: DecodedClip, config: Any) -> Arrays:
        with bad_sample(clip):
            return function(clip, config)

    return guarded


def policy_arrays(content: list[dict[str, Any]], config: ExampleConfig, **media: Any) -> Arrays:
    """System 1's prompt as flat arrays of one row."""
    messages = [{"role": "system", "content": config.system}, {"role": "user", "content": content}]
    prepared = prompt.prepare(messages, config.tokenizer, sizes=config.sizes, budget=config.policy_budget)
    sizes = bucket.bucket_for(
        text_tokens=config.text_tokens,
        budget=config.policy_budget,
        sizes=config.sizes,
        max_aspect=config.max_aspect,
        **media,
    )
    return padded(prepared, sizes, config)


def padded(prepared: prompt.Prompt, sizes: bucket.Bucket, config: ExampleConfig) -> Arrays:
    """A prompt as flat arrays of the bucket's sizes."""
    batch = bucket.pad_to([prepared], sizes, sizes=config.sizes)
    tree = {
        key: value._asdict() if hasattr(value, "_asdict") else value
        for key, value in batch._asdict().items()
        if value is not None
    }
    return {f"policy/{key}": value[0] for key, value in flatten_dict(tree, sep="/").items()}


def waveform(clip: DecodedClip, config: ExampleConfig) -> dict[str, Any] | None:
    if not config.audio_seconds or clip.audio is None:
        return None
    return {"audio": clip.audio[: round(config.audio_seconds * SAMPLE_RATE)], "sample_rate": SAMPLE_RATE}


def sharp_arrays(frames: UInt8[np.ndarray, "t h w 3"], size: tuple[int, int], config: ExampleConfig) -> Arrays:
    """`HighResFrames` of one clip of at most `frames` frames."""
    arrays = high_res_arrays(frames, size, config.frames, config.high_res)
    return {f"sharp/{name}": value for name, value in arrays.items()}


def video_prompt(clip: DecodedClip, text: str, config: ExampleConfig) -> Arrays:
    """A clip, with its sound if it is heard, and a text."""
    video = {"type": "video", "video": clip.frames, "fps": SAMPLED_FPS, **(waveform(clip, config) or {})}
    audio_seconds = [config.audio_seconds] if config.audio_seconds else []
    content = [video, {"type": "text", "text": text}]
    return policy_arrays(content, config, video_frames=[config.frames], audio_seconds=audio_seconds)
