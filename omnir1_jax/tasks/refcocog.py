"""refCOCOg in Seg-Zero's form: one image, one phrase; the policy itself answers with a box and two points."""

from collections.abc import Mapping
from typing import Any, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from omnir1_jax import rewards
from omnir1_jax.data.clips import DecodedClip
from omnir1_jax.data.preprocess import pixels
from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni.inputs import ThinkerInputs
from omnir1_jax.models.qwen_omni.sample import Completions
from omnir1_jax.rl.config import Frozen, Rewards, StepConfig
from omnir1_jax.systems import prompts, reasoner
from omnir1_jax.tasks import common, description, examples, targets
from omnir1_jax.tasks.description import At, Clip, Description, Keyframe
from omnir1_jax.tasks.examples import Arrays, ExampleConfig
from omnir1_jax.tasks.task import Task, grouped
from omnir1_jax.text.readers import BoxAndPoints, read_box_and_points


@no_type_check  # also holds shapes and shardings
@flax.struct.dataclass
class Batch:
    """Prompts about one image.

    Attributes:
      box, points: the ground truth, in original pixels.
      scale: resized over original width and height.
    """

    policy: ThinkerInputs
    box: Float[Array, "b 4"]
    points: Float[Array, "b 2 2"]
    scale: Float[Array, "b 2"]


def prompt(clip: DecodedClip, config: ExampleConfig) -> Arrays:
    """An image with a phrase."""
    text = prompts.render(config.template, query=clip.ref.query)
    content = [{"type": "image", "image": clip.frames[0]}, {"type": "text", "text": text}]
    return examples.policy_arrays(content, config, images=1)


def truth_of(clip: DecodedClip, config: ExampleConfig) -> Arrays:
    """Box and points of the first object in original pixels, and resized over original width and height; float64."""
    extra, limits = clip.ref.extra, config.policy_budget
    if not extra["boxes"] or len(extra["points"]) < 2:
        raise InputError("no box with two points")
    height, width = pixels.smart_resize(
        *clip.size, min_pixels=limits.image_min, max_pixels=limits.image_max, factor=config.sizes.cell_pixels
    )
    scale = np.array([width / clip.size[1], height / clip.size[0]])
    return {"box": np.asarray(extra["boxes"][0]), "points": np.asarray(extra["points"][:2]), "scale": scale}


def truth(clip: DecodedClip, config: ExampleConfig) -> Arrays:
    """The first object."""
    return {name: value.astype(np.float32) for name, value in truth_of(clip, config).items()}


def target(clip: DecodedClip, config: targets.TargetConfig) -> str:
    """Box and two points in pixels of the resized image."""
    true = truth_of(clip, config)
    box = np.trunc(true["box"] * np.tile(true["scale"], 2)).astype(int).tolist()
    first, second = np.trunc(true["points"] * true["scale"]).astype(int).tolist()
    query = targets.quoted(clip.ref.query)[1:-1]
    return targets.thought(
        f" What is meant is {query}. ", f' {{"bbox_2d": {box}, "points_1": {first}, "points_2": {second}}} '
    )


def read(frozen: Frozen, config: StepConfig, batch: Batch, completions: Completions) -> BoxAndPoints:
    """Completions to boxes and points, [b g ...]."""
    answer = read_box_and_points(reasoner.read(frozen.vocab, completions, config.completion_bytes))
    return grouped(answer, config.group)


def failures(batch: Batch, answer: BoxAndPoints, _: None) -> dict[str, Int[Array, "b g"]]:
    """Counts of failures by name."""
    return {
        **common.kinds("object", answer.failure),
        **common.kinds("box", answer.box_failure),
        **common.kinds("points", answer.point_failure),
    }


def reward(config: StepConfig, batch: Batch, completions: Completions, answer: BoxAndPoints, *_: None) -> Rewards:
    """The sum of Seg-Zero's four terms of the answer."""
    shape = completions.lengths.shape
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), answer)
    truth = jax.tree.map(lambda x: jnp.repeat(x, config.group, axis=0), (batch.box, batch.points, batch.scale))
    terms = jax.tree.map(lambda x: x.reshape(shape), rewards.refcocog_terms(flat, *truth))
    counts = failures(batch, answer, None)
    return common.total(config, sum(terms.values()), answer.formatted, completions, terms, counts)


def describe(facts: Mapping[str, Any], answer: BoxAndPoints, _: None, index: At) -> Description:
    """The box of the policy itself as the answer of a keyframe."""
    box = description.boxes(answer.box[index][None], facts["scale"][index[0]])
    return Description(keyframes=(Keyframe(0, "the policy's own box", "", box),))


def picture(batch: Batch, i: int) -> Clip:
    """The image with the true box."""
    frames = description.policy_frames(batch, i)[:1]
    width, height = np.round(np.array(frames.shape[2:0:-1]) / batch.scale[i]).astype(int)
    return Clip(frames, (int(width), int(height)), boxes=batch.box[i][None, None].astype(np.float32))


TASK = Task(
    "refcocog",
    Batch,
    prompt,
    read,
    reward,
    failures=failures,
    fields=("query",),
    clips="refcocog",
    extra={"boxes": [[0, 0, 9, 9]], "points": [[1, 1], [2, 2]]},
    truth=truth,
    target=target,
    describe=describe,
    picture=picture,
)
