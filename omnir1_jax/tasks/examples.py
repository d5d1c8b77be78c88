"""From a decoded clip to a family's arrays: System 1's prompt, sharp frames for System 2, the truth.

These are the pipeline's transforms: they run in its workers, hold plain values only, and give one static shape.
Arrays are flat, their keys paths such as "policy/vision/pixels"; `to_batch` builds the step's batch from them.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import UInt8
from transformers import PreTrainedTokenizerBase

from omnir1_jax.data import canvas as detail_data
from omnir1_jax.data.audio import SAMPLE_RATE
from omnir1_jax.data.clips import DecodedClip
from omnir1_jax.data.frame_sampling import SAMPLED_FPS
from omnir1_jax.data.preprocess import bucket, pixels, prompt
from omnir1_jax.data.preprocess.settings import PixelBudget, Sizes
from omnir1_jax.data.refs import BadSample
from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni.inputs import ThinkerInputs
from omnir1_jax.systems import prompts
from omnir1_jax.systems.frames import FramesConfig, HighResFrames, high_res_arrays
from omnir1_jax.tasks import TASKS

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class ExampleConfig:
    """What all families' prompts need.

    Attributes:
      system: System 1's system message.
      template: of the family's user message, and of System 2's whole prompt.
      budget: pixels of System 1's images and frames, and of System 2's.
      text_tokens: most tokens of a prompt that are not media.
      frames: most frames of a clip. audio_seconds: most sound, 0 for none. objects: most objects of a target.
      segmenter_side: side of the segmenter's frames; 0 leaves them out.
      max_aspect: longest side over shortest; a clip beyond it is a bad sample.
      grounder: tokenizer and sizes of another thinker that is shown System 2's frames.
    """

    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    sizes: Sizes
    system: str
    template: str
    grounding: str
    policy_budget: PixelBudget
    sharp_budget: PixelBudget
    text_tokens: int
    frames: int = 24
    objects: int = 3
    audio_seconds: float = 0.0
    segmenter_side: int = 0
    max_aspect: float = 3.0
    grounder: tuple[PreTrainedTokenizerBase, Sizes] | None = field(default=None, repr=False)

    @property
    def high_res(self) -> FramesConfig:
        """Of System 2's frames."""
        own = self.grounder or (self.tokenizer, self.sizes)
        return FramesConfig(*own, self.grounding, self.sharp_budget, self.max_aspect)


def named(function: Callable[[DecodedClip, ExampleConfig], Arrays]) -> Callable[[DecodedClip, ExampleConfig], Arrays]:
    """A clip that does not fit its shapes is a bad sample, not the end of the run."""

    @functools.wraps(function)
    def guarded(clip: DecodedClip, config: ExampleConfig) -> Arrays:
        try:
            return function(clip, config)
        except InputError as error:
            raise BadSample(clip.ref.sample_id, str(error)) from error

    return guarded


def policy_arrays(content: list[dict[str, Any]], config: ExampleConfig, **media: Any) -> Arrays:
    """System 1's prompt as flat arrays of one row."""
    messages = [{"role": "system", "content": config.system}, {"role": "user", "content": content}]
    made = prompt.prepare(messages, config.tokenizer, sizes=config.sizes, budget=config.policy_budget)
    room = bucket.bucket_for(
        text_tokens=config.text_tokens,
        budget=config.policy_budget,
        sizes=config.sizes,
        max_aspect=config.max_aspect,
        **media,
    )
    return padded(made, room, config)


def padded(made: prompt.Prompt, room: bucket.Bucket, config: ExampleConfig) -> Arrays:
    """A prompt as flat arrays of the bucket's sizes."""
    batch = bucket.pad_to([made], room, sizes=config.sizes)
    tree = {
        key: value._asdict() if isinstance(value, tuple) else value
        for key, value in batch._asdict().items()
        if value is not None
    }
    return {f"policy/{key}": value[0] for key, value in flatten_dict(tree, sep="/").items()}


def waveform(clip: DecodedClip, config: ExampleConfig) -> dict[str, Any] | None:
    if not config.audio_seconds or clip.audio is None:
        return None
    return {"audio": clip.audio[: round(config.audio_seconds * SAMPLE_RATE)], "sample_rate": SAMPLE_RATE}


def sharp_arrays(frames: UInt8[np.ndarray, "t h w 3"], size: tuple[int, int], config: ExampleConfig) -> Arrays:
    """`HighResFrames` of one clip, `frames` long at most."""
    made = high_res_arrays(frames, size, config.frames, config.high_res)
    return {f"sharp/{name}": value for name, value in made.items()}


def vos_prompt(clip: DecodedClip, config: ExampleConfig) -> Arrays:
    """System 1's prompt about a clip."""
    seconds = len(clip.frames) / SAMPLED_FPS
    text = prompts.render(
        config.template,
        query=clip.ref.query,
        duration=f"{seconds:g}",
        fps=f"{SAMPLED_FPS:g}",
        example=prompts.example(seconds, clip.rng),
    )
    return video_prompt(clip, text, config)


def video_prompt(clip: DecodedClip, text: str, config: ExampleConfig) -> Arrays:
    """A clip, with its sound if the family has one, and a text."""
    video = {"type": "video", "video": clip.frames, "fps": SAMPLED_FPS, **(waveform(clip, config) or {})}
    heard = [config.audio_seconds] if config.audio_seconds else []
    content = [video, {"type": "text", "text": text}]
    return policy_arrays(content, config, video_frames=[config.frames], audio_seconds=heard)


@named
def vos(clip: DecodedClip, config: ExampleConfig) -> Arrays:
    """A clip with its query: `tasks.vos.Batch`."""
    side = config.segmenter_side
    if not side:
        raise InputError("sam2.side: the video family needs the segmenter's input side")
    shape = detail_data.DetailConfig(config.frames, config.objects, (side, side), (side // 4, side // 4))
    seen = detail_data.element(clip, shape)
    return {
        **vos_prompt(clip, config),
        **sharp_arrays(clip.frames, clip.size, config),
        "clip": seen["frames"],
        "frame_valid": seen["frame_valid"],
        "truth": seen["masks"].any(axis=0),
        "boxes": seen["boxes"].astype(np.float32),
        "areas": seen["areas"].astype(np.float32),
        "objects": np.int32(seen["object_valid"].sum()),
    }


def refavs_prompt(clip: DecodedClip, config: ExampleConfig) -> Arrays:
    """System 1's prompt about a recording and its first frame."""
    sound = waveform(clip, config)
    if sound is None:
        raise InputError("no sound")
    content = [
        {"type": "image", "image": clip.frames[0]},
        {"type": "audio", **sound},
        {"type": "text", "text": prompts.render(config.template, query=clip.ref.query)},
    ]
    return policy_arrays(content, config, images=1, audio_seconds=[config.audio_seconds])


@named
def refavs(clip: DecodedClip, config: ExampleConfig) -> Arrays:
    """The first frame with the sound: `tasks.refavs.Batch`."""
    box = detail_data.boxes(clip.masks[:, :1])[0, 0]
    return {
        **refavs_prompt(clip, config),
        **sharp_arrays(clip.frames[:1], clip.size, config),
        "box": box.astype(np.float32),
    }


def refcocog_prompt(clip: DecodedClip, config: ExampleConfig) -> Arrays:
    """System 1's prompt about an image."""
    content = [
        {"type": "image", "image": clip.frames[0]},
        {"type": "text", "text": prompts.render(config.template, query=clip.ref.query)},
    ]
    return policy_arrays(content, config, images=1)


@named
def refcocog(clip: DecodedClip, config: ExampleConfig) -> Arrays:
    """An image with a phrase: `tasks.refcocog.Batch`. Of several objects the first counts."""
    extra = clip.ref.extra
    if not extra["boxes"] or len(extra["points"]) < 2:
        raise InputError("no box with two points")
    limits = config.policy_budget
    height, width = pixels.smart_resize(
        *clip.size, min_pixels=limits.image_min, max_pixels=limits.image_max, factor=config.sizes.cell_pixels
    )
    return {
        **refcocog_prompt(clip, config),
        "box": np.asarray(extra["boxes"][0], np.float32),
        "points": np.asarray(extra["points"][:2], np.float32),
        "scale": np.array([width / clip.size[1], height / clip.size[0]], np.float32),
    }


def qa_prompt(clip: DecodedClip, config: ExampleConfig) -> tuple[Arrays, str]:
    """System 1's prompt of a question with options, and the right one's letter.

    Other kinds of question are refused: their scores (word error rate, rouge, relative error) are not computed in a
    graph.
    """
    options, index = clip.ref.extra.get("options"), clip.ref.extra.get("answer_index")
    if not options or index is None:
        kind = clip.ref.extra.get("problem_type") or "a question without options"
        raise InputError(f"{kind}: only multiple choice is rewarded in training")
    letters = [chr(ord("A") + i) for i in range(len(options))]
    listed = "\n".join(f"{letter}. {option.removeprefix(f'{letter}. ')}" for letter, option in zip(letters, options))
    text = prompts.render(config.template, query=clip.ref.query, options=listed)
    return video_prompt(clip, text, config), letters[index]


@named
def qa(clip: DecodedClip, config: ExampleConfig) -> Arrays:
    """A question with options: `tasks.qa.Batch`. The gold answer is the option's letter."""
    arrays, letter = qa_prompt(clip, config)
    return {**arrays, "gold": np.frombuffer(letter.encode(), np.uint8), "gold_length": np.int32(1)}


EXAMPLES: dict[str, Callable[[DecodedClip, ExampleConfig], Arrays]] = {
    "vos": vos,
    "refavs": refavs,
    "refcocog": refcocog,
    "qa": qa,
}


def to_batch(family: str, arrays: Mapping[str, Any]) -> Any:
    """The step's batch of a family from the pipeline's flat arrays (numpy, jax or shapes)."""
    tree = unflatten_dict(dict(arrays), sep="/")
    inputs = ThinkerInputs.of(tree.pop("policy"))
    if "sharp" in tree:
        tree["sharp"] = HighResFrames(**tree["sharp"])
    return TASKS[family].batch(policy=inputs, **tree)
