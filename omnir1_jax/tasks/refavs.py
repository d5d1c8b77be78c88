"""RefAVS in its training form: the answer describes what sounds, System 2 finds it in the first frame."""

from typing import Any, NamedTuple, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from omnir1_jax import rewards
from omnir1_jax.data import canvas
from omnir1_jax.data.clips import DecodedClip
from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni.inputs import ThinkerInputs
from omnir1_jax.models.qwen_omni.sample import Completions
from omnir1_jax.rl.config import Frozen, Models, Rewards, StepConfig
from omnir1_jax.systems import prompts, reasoner
from omnir1_jax.systems.frames import HighResFrames
from omnir1_jax.systems.grounders.protocol import GroundedBoxes, Requests
from omnir1_jax.tasks import common, description, examples, targets
from omnir1_jax.tasks.common import Grounded
from omnir1_jax.tasks.description import At, Clip, Description
from omnir1_jax.tasks.examples import Arrays, ExampleConfig
from omnir1_jax.tasks.task import Task, nothing
from omnir1_jax.text.readers import Answer, read_answer


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class Batch:
    """Prompts with sound and a first frame.

    Attributes:
      policy: System 1's prompts.
      sharp: the first frame for the grounder (t = 1).
      box: box of the object in that frame, in original pixels.
    """

    policy: ThinkerInputs
    sharp: HighResFrames
    box: Float[Array, "b 4"]


class Reading(NamedTuple):
    """Answers [b, g, ...] and requests to System 2."""

    answer: Answer
    requests: Requests


class Grounding(NamedTuple):
    """System 2's boxes, [b g 1 1 ...]."""

    boxes: GroundedBoxes


def prompt(clip: DecodedClip, config: ExampleConfig) -> Arrays:
    """A recording and its first frame."""
    sound = examples.waveform(clip, config)
    if sound is None:
        raise InputError("no sound")
    content = [
        {"type": "image", "image": clip.frames[0]},
        {"type": "audio", **sound},
        {"type": "text", "text": prompts.render(config.template, query=clip.ref.query)},
    ]
    return examples.policy_arrays(content, config, images=1, audio_seconds=[config.audio_seconds])


def frames(clip: DecodedClip, config: ExampleConfig) -> Arrays:
    """The first frame, for System 2."""
    return examples.sharp_arrays(clip.frames[:1], clip.size, config)


def truth(clip: DecodedClip, config: ExampleConfig) -> Arrays:
    """The object's box in the first frame."""
    return {"box": canvas.boxes(clip.masks[:, :1])[0, 0].astype(np.float32)}


def target(clip: DecodedClip, config: targets.TargetConfig) -> str:
    """The query itself as the description."""
    return targets.thought(f" What is meant is {clip.ref.query}. ", f" {clip.ref.query} ")


def read(frozen: Frozen, config: StepConfig, batch: Any, completions: Completions) -> Reading:
    """Completions to descriptions. An empty answer makes no request."""
    text = reasoner.read(frozen.vocab, completions, config.completion_bytes)
    answer = read_answer(text, config.limits)
    answer = jax.tree.map(lambda x: x.reshape(-1, config.group, *x.shape[1:]), answer)
    has_text = (answer.answered & (answer.description.length > 0))[..., None]
    description = jax.tree.map(lambda x: x[:, :, None], answer.description)
    return Reading(answer, Requests(jnp.zeros(has_text.shape, jnp.int32), has_text, description))


def ground(models: Models, frozen: Frozen, config: StepConfig, batch: Batch, reading: Reading) -> Grounding:
    """The first box that System 2 gives."""
    return Grounding(common.find(models, frozen, batch.sharp, reading.requests, 1))


def failures(batch: Any, reading: Reading, grounding: Grounded) -> dict[str, Int[Array, "b g"]]:
    """Counts of failures by name; without boxes of System 2's those of the answer alone."""
    answer, boxes = reading.answer, grounding.boxes
    counts = {
        **common.kinds("answer", answer.failure),
        "answer/empty": common.count(answer.answered & (answer.description.length == 0)),
    }
    if boxes is None:
        return counts
    return {
        **counts,
        **common.kinds("box", boxes.failure[..., 0, 0], boxes.asked[..., 0]),
        "description/too_long": common.count(reading.requests.valid & ~boxes.asked),
    }


def reward(
    config: StepConfig, batch: Batch, completions: Completions, reading: Reading, grounding: Grounding, _: None
) -> Rewards:
    """Overlap of the found box with the true one."""
    shape, boxes = completions.lengths.shape, grounding.boxes
    truth = jnp.broadcast_to(batch.box[:, None], (*shape, 4))
    scale = jnp.broadcast_to(boxes.scale[:, None], (*shape, 2))
    accuracy = rewards.refavs_accuracy(boxes.box[:, :, 0, 0], truth, scale)
    accuracy = jnp.where(boxes.asked[..., 0], accuracy, 0.0)
    counts = failures(batch, reading, grounding)
    return common.total(config, accuracy, reading.answer.formatted, completions, {}, counts)


def describe(facts: Any, reading: Reading, grounding: Grounded, index: At) -> Description:
    """The answer and System 2's boxes for it."""
    keyframes = description.keyframes(reading.requests, grounding.boxes, index)
    return Description(keyframes=keyframes, answer=description.text(reading.answer.description, index))


def picture(batch: Batch, i: int) -> Clip:
    """The first frame with the true box."""
    return description.high_res_clip(batch.sharp, i, 1)._replace(boxes=batch.box[i][None, None].astype(np.float32))


TASK = Task(
    "refavs",
    Batch,
    prompt,
    read,
    reward,
    ground=ground,
    failures=failures,
    fields=("query",),
    clips="refavs",
    frames=frames,
    truth=truth,
    target=target,
    facts=nothing,
    describe=describe,
    picture=picture,
    mask_rules="refavs",
    sampling="first",
    needs_sound=True,
    max_boxes=1,
)
